//! What would run, and why: the plans or the refusals as one answer, as data and as text.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plan::{DevicePlan, Plan, ProviderPlan, Refusal};

/// The planner's answer. As text, one line a provider, device and refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    /// True if tracking could start.
    pub possible: bool,
    /// What would run, by address space; empty if nothing would.
    pub spaces: Vec<Plan>,
    /// What is against it.
    pub refusals: Vec<Refusal>,
}

impl From<Result<Vec<Plan>, Vec<Refusal>>> for Explanation {
    fn from(planned: Result<Vec<Plan>, Vec<Refusal>>) -> Self {
        match planned {
            Ok(spaces) => Self { possible: true, spaces, refusals: Vec::new() },
            Err(refusals) => Self { possible: false, spaces: Vec::new(), refusals },
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.possible {
            writeln!(f, "Tracking would not start:")?;
        }
        for refusal in &self.refusals {
            writeln!(f, "  {refusal}")?;
        }
        for plan in &self.spaces {
            write!(f, "Address space {}: {}", plan.space, plan.class)?;
            if plan.class_after_ndma != plan.class {
                write!(f, ", {} after early NDMA", plan.class_after_ndma)?;
            }
            writeln!(f, "{}", if plan.require_exact { " (require=exact)" } else { "" })?;
            plan.providers.iter().try_for_each(|provider| write_provider(f, provider))?;
            plan.devices.iter().try_for_each(|device| write_device(f, device))?;
        }
        Ok(())
    }
}

fn write_provider(f: &mut fmt::Formatter<'_>, plan: &ProviderPlan) -> fmt::Result {
    write!(f, "  provider {} at {}: {}", plan.provider, plan.page_size, plan.class)?;
    write!(f, ", covers {}", plan.covers.join(", "))?;
    match plan.expected_ns {
        Some(ns) => write!(f, ", {ns} ns a round")?,
        None => write!(f, ", cost unknown")?,
    }
    writeln!(f, " ({})", plan.reason)
}

fn write_device(f: &mut fmt::Formatter<'_>, plan: &DevicePlan) -> fmt::Result {
    write!(f, "  device {}", plan.label)?;
    if plan.label != plan.rid.to_string() {
        write!(f, " ({})", plan.rid)?;
    }
    write!(f, ": ")?;
    let Some(provider) = plan.provider else {
        return writeln!(f, "nothing ({})", plan.reason);
    };
    write!(f, "{provider}")?;
    if plan.pins && provider.is_recorder() {
        write!(f, " and its pins")?;
    }
    write!(f, " ({}), {} ({})", plan.reason, plan.page_size, plan.page_size_reason)?;
    if plan.early_ndma {
        write!(f, ", early NDMA ({})", plan.ndma_reason)?;
    }
    writeln!(f)
}
