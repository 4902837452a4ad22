//! `drogher trackers`: what each way of tracking costs on this machine, and how well `auto` chooses.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::Context;
use drogher_trackers::{Settings, TrackersError, grid, report};

use crate::args::TrackersArgs;
use crate::signals::stop_flag;
use crate::words;

/// Exit status after a signal.
const INTERRUPTED: u8 = 130;

/// `drogher trackers`.
pub fn trackers(args: &TrackersArgs) -> anyhow::Result<u8> {
    let settings = settings(args);
    settings.check()?;
    // Not after minutes of measuring.
    let json = Output::open(args.json.as_deref())?;
    let html = Output::open(args.html.as_deref())?;
    let stop = stop_flag()?;
    let measured = grid::measure(&settings, &mut |step| {
        words::note(step);
        !stop.load(Ordering::Acquire)
    });
    let grid = match measured {
        Err(TrackersError::Interrupted) => {
            words::say("the measurement was ended");
            return Ok(INTERRUPTED);
        }
        other => other?,
    };
    words::note(format_args!("measured for {:.1} s", grid.took_ms as f64 / 1e3));
    // The files first: whoever reads the table may have gone.
    json.map_or(Ok(()), |file| file.write(&report::json(&grid)?))?;
    html.map_or(Ok(()), |file| file.write(&report::html(&grid)))?;
    words::print(report::text(&grid))?;
    Ok(0)
}

fn settings(args: &TrackersArgs) -> Settings {
    let base = if args.quick { Settings::quick() } else { Settings::default() };
    let or = |given: &[u64], base| if given.is_empty() { base } else { given.to_vec() };
    Settings {
        memory: args.memory.unwrap_or(base.memory),
        working_sets: or(&args.working_set, base.working_sets),
        rates: or(&args.rate, base.rates),
        providers: match args.providers.is_empty() {
            true => base.providers,
            false => args.providers.clone(),
        },
        page_sizes: match args.pages.is_empty() {
            true => base.page_sizes,
            false => args.pages.clone(),
        },
        runs: base.runs,
    }
}

/// A file that can be written to. What it held stays until there is something new.
struct Output {
    path: PathBuf,
    file: File,
}

impl Output {
    fn open(path: Option<&Path>) -> anyhow::Result<Option<Self>> {
        let Some(path) = path else { return Ok(None) };
        let opened = File::options().write(true).create(true).truncate(false).open(path);
        let file = opened.with_context(|| format!("Cannot write to {}", path.display()))?;
        Ok(Some(Self { path: path.to_owned(), file }))
    }

    fn write(mut self, text: &str) -> anyhow::Result<()> {
        let path = &self.path;
        // What is no file (a pipe, a terminal) has no length to set.
        if self.file.metadata().is_ok_and(|about| about.is_file()) {
            self.file.set_len(0).with_context(|| format!("Cannot write to {}", path.display()))?;
        }
        let written = self.file.write_all(text.as_bytes());
        written.with_context(|| format!("Cannot write to {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn parse(words: &[&str]) -> Result<TrackersArgs, String> {
        let cli = Cli::try_parse_from(["drogher", "trackers"].iter().chain(words));
        match cli.map_err(|error| error.to_string())?.command {
            Command::Trackers(args) => Ok(*args),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn flags_change_the_grid_and_the_rest_stays() {
        assert_eq!(settings(&parse(&[]).unwrap()), Settings::default());
        assert_eq!(settings(&parse(&["--quick"]).unwrap()), Settings::quick());
        let args = ["--quick", "--memory", "32M", "--working-set", "64K,1M", "--rate", "500/s,2K"];
        let more = ["--providers", "iommu,all", "--pages", "8K,2M"];
        let found = settings(&parse(&[&args[..], &more].concat()).unwrap());
        assert_eq!((found.memory, &*found.working_sets), (32 << 20, &[64 << 10, 1 << 20][..]));
        assert_eq!((&*found.rates, found.runs), (&[500, 2000][..], Settings::quick().runs));
        let choices: Vec<String> = found.choices().iter().map(ToString::to_string).collect();
        assert_eq!(choices, ["iommu 8K", "iommu 2M", "all 4K"]);
    }

    #[test]
    fn a_wrong_value_is_named_with_what_is_possible() {
        for (words, text) in [
            (["--memory", "lots"], "\"lots\" is no size; write it as 4096, 256K, 8M or 1G"),
            (["--working-set", "1M,x"], "\"x\" is no size"),
            (["--rate", "fast"], "\"fast\" is no rate; write it as 20000/s"),
            (["--providers", "iommu,magic"], "\"magic\" is no provider; use iommu, device"),
            (["--pages", "4M"], "is not within 4K..=2M"),
            (["--pages", "12K"], "is no power of two"),
        ] {
            let error = parse(&words).unwrap_err();
            assert!(error.contains(text) && error.contains(words[0]), "{error}");
        }
        // These only show together.
        for (words, text) in [
            (["--working-set", "1G"], "is not whole pages of 4K within the 67108864 bytes"),
            (["--memory", "5M"], "use 4M to 4G, in steps of 2M"),
            (["--rate", "1"], "use 100/s to 10000000/s"),
            (["--providers", "all,all"], "The provider all is given twice"),
        ] {
            let error = trackers(&parse(&words).unwrap()).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_found_first() {
        let folder = tempfile::tempdir().unwrap();
        for flag in ["--json", "--html"] {
            let path = folder.path().join("missing").join("report");
            let args = parse(&[flag, path.to_str().unwrap()]).unwrap();
            let error = format!("{:#}", trackers(&args).unwrap_err());
            assert!(error.contains("Cannot write to") && error.contains("missing"), "{error}");
        }
        // Longer contents of before do not show through.
        let path = folder.path().join("report");
        std::fs::write(&path, "long long ago").unwrap();
        let output = Output::open(Some(&path)).unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "long long ago");
        output.write("now").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "now");
    }
}
