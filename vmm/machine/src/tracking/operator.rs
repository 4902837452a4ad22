//! What the operator says, and how it adds up: flags and files, a migration's own wishes, and changes
//! while it runs.

use drogher_iommu_types::plugin::is_called;
use drogher_tracking::{
    Choice, DeviceRule, EarlyNdma, Policy, Quirk, Quirks, TrackingPageSize, Wish,
};
use serde::{Deserialize, Serialize};

use super::plan::Subject;

/// Word for the devices that nothing tracks, where a device's name is expected.
const UNTRACKED: &str = "untracked";

/// What reports have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Require {
    /// Exact, or the migration is refused.
    Exact,
    /// Whatever can be had.
    Any,
}

/// What the operator says of all devices, in flags, in a file's `[tracking]` or in a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Wishes {
    /// The provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracker: Option<Wish>,
    /// The tracking page size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<TrackingPageSize>,
    /// What reports have to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require: Option<Require>,
    /// Devices to put in NDMA when the rounds begin, by name, `bb:dd.f` or plugin; `untracked` for
    /// those that nothing tracks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub early_ndma: Vec<String>,
    /// What is known of plugins and IOMMU models, and consulted where the operator names no provider;
    /// the first that fits counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quirks: Vec<Quirk>,
}

impl Wishes {
    /// These, where `over` says nothing else; names add up.
    #[must_use]
    pub fn overridden_by(mut self, mut over: Self) -> Self {
        self.early_ndma.extend(over.early_ndma);
        over.quirks.extend(self.quirks);
        Self {
            tracker: over.tracker.or(self.tracker),
            page: over.page.or(self.page),
            require: over.require.or(self.require),
            early_ndma: self.early_ndma,
            quirks: over.quirks,
        }
    }

    fn choice(&self) -> Choice {
        let untracked = self.early_ndma.iter().any(|name| name == UNTRACKED);
        Choice {
            provider: self.tracker,
            page_size: self.page,
            require_exact: self.require.map(|require| require == Require::Exact),
            early_ndma: untracked.then_some(EarlyNdma::Untracked),
        }
    }

    fn early(&self) -> impl Iterator<Item = &str> {
        self.early_ndma.iter().map(String::as_str).filter(|name| *name != UNTRACKED)
    }
}

/// What has been said so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Operator {
    global: Choice,
    /// The later, the stronger; one for each device that was named.
    rules: Vec<DeviceRule>,
    quirks: Quirks,
}

impl Operator {
    /// What was said at the start.
    pub(super) fn of(wishes: &Wishes) -> Self {
        let mut operator = Self {
            global: wishes.choice(),
            rules: Vec::new(),
            quirks: Quirks(wishes.quirks.clone()),
        };
        operator.early(wishes);
        operator
    }

    fn early(&mut self, wishes: &Wishes) {
        for name in wishes.early() {
            self.say(name, Choice { early_ndma: Some(EarlyNdma::On), ..Choice::default() });
        }
    }

    /// Says something of one device, which is stronger than all before.
    pub(super) fn say(&mut self, device: &str, choice: Choice) {
        let old = self.rules.iter().position(|rule| rule.device == device);
        let old = old.map_or_else(Choice::default, |at| self.rules.remove(at).choice);
        self.rules.push(DeviceRule { device: device.to_owned(), choice: choice.or(old) });
    }

    /// Says something of all devices, which is stronger than what was said of each.
    pub(super) fn say_of_all(&mut self, choice: Choice, devices: &[Subject]) {
        // Of all, not by name: who has no NDMA is then passed over.
        self.global.early_ndma = choice.early_ndma.or(self.global.early_ndma);
        let named = Choice { early_ndma: None, ..choice };
        if named != Choice::default() {
            for device in devices {
                self.say(&device.caps.rid.to_string(), named);
            }
        }
    }

    /// A migration's own wishes, over all that was said before.
    pub(super) fn over(&mut self, wishes: &Wishes, devices: &[Subject]) {
        self.say_of_all(wishes.choice(), devices);
        self.early(wishes);
        self.quirks.0.splice(0..0, wishes.quirks.iter().cloned());
    }

    /// The quirks, a migration's own before the others.
    pub(super) fn quirks(&self) -> &Quirks {
        &self.quirks
    }

    /// All of it, and what was said of each device when it was made, which is stronger than what was
    /// said of all at the start.
    pub(super) fn policy(&self, devices: &[Subject]) -> Policy {
        let said = devices.iter().filter(|device| device.choice != Choice::default());
        let keys = said.map(|device| DeviceRule {
            device: device.caps.rid.to_string(),
            choice: device.choice,
        });
        let rules = self.rules.iter().map(|rule| DeviceRule {
            device: full_name(&rule.device, devices),
            choice: rule.choice,
        });
        Policy { global: self.global, devices: keys.chain(rules).collect() }
    }
}

/// What a rule calls a device or plugin, as the planner compares it: a plugin by its whole id. A name or
/// address of a device comes before a plugin's short name.
fn full_name(asked: &str, devices: &[Subject]) -> String {
    let all = || devices.iter().map(|device| &device.caps);
    if all().any(|caps| caps.label == asked || caps.rid.to_string() == asked) {
        return asked.to_owned();
    }
    let mut plugins: Vec<_> = all().map(|caps| &caps.plugin).collect();
    plugins.retain(|plugin| is_called(plugin, asked));
    plugins.sort_unstable();
    plugins.dedup();
    match plugins[..] {
        [plugin] => plugin.clone(),
        _ => asked.to_owned(),
    }
}

#[cfg(test)]
#[path = "operator_test.rs"]
mod tests;
