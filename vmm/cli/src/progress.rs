//! Shows a migration to people: a line for each phase and round, and a table at the end.

use std::io::Write;

use drogher_control::api::{MigrateLine, Outcome};
use drogher_migrate::report::{Event, Forecast, Report, Round};
use drogher_migrate::status::MigrationStatus;
use drogher_migrate::{Phase, report::Downtime};

use crate::tracking;

/// Writes progress to `out`.
pub struct Progress<W> {
    out: W,
    round: Option<Round>,
}

impl<W: Write> Progress<W> {
    /// Shows to `out`; a failed write is no reason to end a migration, and is ignored.
    pub fn new(out: W) -> Self {
        Self { out, round: None }
    }

    fn line(&mut self, text: &str) {
        let _ = writeln!(self.out, "{text}");
    }

    /// Shows one line of the answer.
    pub fn show(&mut self, line: &MigrateLine) {
        match line {
            MigrateLine::Event { of } => self.event(of),
            MigrateLine::Status { status } => {
                let migration = &status.migration;
                if migration.status == MigrationStatus::Active {
                    self.line(&format!(
                        "            ... {} sent, {} left",
                        bytes(migration.ram.transferred),
                        bytes(migration.ram.remaining)
                    ));
                }
            }
            MigrateLine::Outcome { outcome, message, report, tracking } => {
                if report.downtime.total_us > 0 {
                    self.line(&table(report));
                }
                for line in tracking.iter().flat_map(|status| tracking::lines(status)) {
                    self.line(&format!("  {line}"));
                }
                let word = match outcome {
                    Outcome::Moved => "done",
                    _ => "not moved",
                };
                self.line(&format!("{word}: {message}"));
            }
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Phase { phase, at_us, .. } => match phase {
                // Told by the round's line.
                Phase::Harvest | Phase::Resend | Phase::DevicePrecopy | Phase::Forecast => {}
                _ => self.line(&format!("{:>9}  {phase}", millis(*at_us))),
            },
            Event::Round(round) if round.round == 0 => self.line(&round_line(round)),
            Event::Round(round) => self.round = Some(*round),
            Event::Forecast(forecast) => {
                // After the bulk pass there is a forecast, too.
                let mut line = self.round.take().map(|round| round_line(&round));
                let line = line.get_or_insert_with(|| "  forecast".to_owned());
                self.line(&format!("{line}; {}", forecast_words(forecast)));
            }
            Event::Verified(verified) => self.line(&format!(
                "{:>9}  {} pages and {} states compared: {} pages differ{}",
                "verify",
                verified.pages,
                verified.states,
                verified.differing,
                if verified.differing_states.is_empty() {
                    String::new()
                } else {
                    format!(", states that differ: {}", verified.differing_states.join(", "))
                }
            )),
            Event::Ended { .. } => {}
        }
    }
}

fn round_line(round: &Round) -> String {
    let found = if round.round == 0 {
        format!("every page once, {} of zeroes", round.zero_pages)
    } else {
        format!("dirty by CPU {}, by DMA {}", round.dirty_by_cpu, round.dirty_by_dma)
    };
    format!(
        "  round {:>2}   {found}; sent {} pages, {} in {}",
        round.round,
        round.pages,
        bytes(round.bytes),
        millis(round.time_us),
    )
}

fn forecast_words(forecast: &Forecast) -> String {
    format!(
        "{} dirty now, forecast downtime {} (limit {})",
        forecast.dirty_pages,
        millis(forecast.downtime_us),
        millis(forecast.limit_us),
    )
}

/// The figures of a migration that reached the switchover, a line each.
pub fn table(report: &Report) -> String {
    let Downtime {
        pause_us,
        quiesce_us,
        stop_us,
        final_us,
        state_us,
        last_us,
        ready_us,
        commit_us,
        ..
    } = report.downtime;
    let terms = [
        ("pause", pause_us),
        ("quiesce", quiesce_us),
        ("stop", stop_us),
        ("final pages", final_us),
        ("state", state_us),
        ("last harvest", last_us),
        ("ready", ready_us),
        ("commit", commit_us),
    ]
    .map(|(name, time)| format!("{name} {}", millis(time)))
    .join(", ");
    let mut text = format!(
        "  total       {}\n  downtime    {} ({terms})\n  rounds      {}\n  sent        {} in {} pages, {} of them zeroes, {} of device state",
        millis(report.total_us),
        millis(report.downtime.total_us),
        report.rounds.len(),
        bytes(report.bytes),
        report.pages,
        report.zero_pages,
        bytes(report.device_bytes),
    );
    if let Some(verified) = &report.verified {
        text += &format!(
            "\n  verified    {} pages, {} states: {} pages differ",
            verified.pages, verified.states, verified.differing
        );
    }
    text
}

/// Microseconds, as milliseconds for people.
pub fn millis(us: u64) -> String {
    format!("{}.{:02} ms", us / 1000, us % 1000 / 10)
}

/// Bytes with a unit that fits.
pub fn bytes(count: u64) -> String {
    let (shift, unit) = match count {
        0..1024 => return format!("{count} B"),
        1024..0x10_0000 => (10, "KiB"),
        0x10_0000..0x4000_0000 => (20, "MiB"),
        _ => (30, "GiB"),
    };
    let tenths = (u128::from(count) * 10) >> shift;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_fit() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(millis(12_345), "12.34 ms");
    }

    #[test]
    fn a_round_names_who_dirtied() {
        let round = Round { round: 2, dirty_by_cpu: 7, dirty_by_dma: 5, ..Round::default() };
        let line = round_line(&round);
        assert!(line.contains("dirty by CPU 7, by DMA 5"), "{line}");
    }
}
