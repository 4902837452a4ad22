//! The decision for one device, before its neighbours are looked at.

use crate::caps::{DeviceCaps, Dma, Pins, Preference, SpaceCaps};
use crate::costs::Measured;
use crate::page_size::TrackingPageSize;
use crate::plan::{Decider, DevicePlan, Reason, Refusal, RefusalCode};
use crate::planner::{Inputs, refusal};
use crate::policy::{Choice, EarlyNdma, Quirk};
use crate::provider::{Class, ProviderKind};

/// The class of the reports if `kind` covers `device` there; `None` if it does not cover it.
pub(super) fn class_of(
    kind: ProviderKind,
    device: &DeviceCaps,
    space: &SpaceCaps,
) -> Option<Class> {
    let through = device.dma == Dma::ThroughIommu;
    // What is written to pinned memory passes no second stage: its pins are harvested beside it.
    let recorded = if device.pins == Pins::None { Class::Exact } else { Class::Pinned };
    match kind {
        ProviderKind::Iommu => (through && space.d_bits).then_some(recorded),
        ProviderKind::Fault => (through && space.write_fault).then_some(recorded),
        ProviderKind::Device => device.log.map(|_| Class::Exact),
        ProviderKind::Pinned => (device.pins == Pins::All).then_some(Class::Pinned),
        ProviderKind::All => through.then_some(Class::AllMapped),
    }
}

/// Decides for one device.
pub(super) fn plan(
    device: &DeviceCaps,
    space: &SpaceCaps,
    inputs: Inputs<'_>,
) -> Result<DevicePlan, Vec<Refusal>> {
    let choice = inputs.policy.of(device);
    let mut refusals = Vec::new();
    if !device.migratable {
        refusals.push(refusal(
            RefusalCode::NotMigratable,
            device,
            format!("Plugin {} {} cannot save its state", device.plugin, device.version),
            "unplug the device, or use a plugin with the migration extension",
        ));
    }
    let class_of = |kind| class_of(kind, device, space);
    if device.dma == Dma::None {
        return if refusals.is_empty() { Ok(idle(device)) } else { Err(refusals) };
    }
    if ProviderKind::EACH.into_iter().all(|kind| class_of(kind).is_none()) {
        refusals.push(refusal(
            RefusalCode::RawDevice,
            device,
            "It reaches memory past every IOMMU and has no tracker of its own",
            "unplug it, or put it behind the IOMMU",
        ));
        return Err(refusals);
    }
    let picked = match pick(device, choice, inputs, space, &class_of) {
        Ok(picked) => picked,
        Err(refusal) => {
            refusals.push(refusal);
            return Err(refusals);
        }
    };
    let (early_ndma, ndma_reason) = match early_ndma(device, inputs, picked.class) {
        Ok(early) => early,
        Err(refusal) => {
            refusals.push(refusal);
            return Err(refusals);
        }
    };
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let (page_size, page_size_reason) = page_size(device, choice, inputs, space, &picked);
    let tracked_beside = picked.kind.is_recorder() && device.pins != Pins::None;
    Ok(DevicePlan {
        rid: device.rid,
        label: device.label.clone(),
        provider: Some(picked.kind),
        pins: tracked_beside || picked.kind == ProviderKind::Pinned,
        page_size,
        class: picked.class,
        early_ndma,
        reason: picked.reason,
        page_size_reason,
        ndma_reason,
    })
}

/// For a device that writes nothing.
fn idle(device: &DeviceCaps) -> DevicePlan {
    let none = || Reason::new(Decider::Default, "it does no DMA");
    DevicePlan {
        rid: device.rid,
        label: device.label.clone(),
        provider: None,
        pins: false,
        page_size: TrackingPageSize::K4,
        class: Class::Exact,
        early_ndma: false,
        reason: none(),
        page_size_reason: none(),
        ndma_reason: none(),
    }
}

struct Picked {
    kind: ProviderKind,
    class: Class,
    reason: Reason,
}

/// The provider: operator, quirk, preference, measurement, in this order.
fn pick(
    device: &DeviceCaps,
    choice: Choice,
    inputs: Inputs<'_>,
    space: &SpaceCaps,
    class_of: &impl Fn(ProviderKind) -> Option<Class>,
) -> Result<Picked, Refusal> {
    if let Some(kind) = choice.provider.and_then(|wish| wish.provider()) {
        let Some(class) = class_of(kind) else {
            return Err(refusal(
                RefusalCode::NoProvider,
                device,
                format!("The operator asks for provider {kind}, which does not cover it"),
                format!("use auto, or one of: {}", names(class_of)),
            ));
        };
        let reason = Reason::new(Decider::Operator, "operator");
        return Ok(Picked { kind, class, reason });
    }
    // Not exact only counts if exact was required, and that the address space looks at.
    let exact_only = choice.require_exact == Some(true)
        && ProviderKind::EACH.into_iter().any(|kind| class_of(kind) == Some(Class::Exact));
    let usable = |kind| class_of(kind).filter(|class| !exact_only || *class == Class::Exact);
    if let Some(quirk) = inputs.quirks.find(device, space)
        && let Some(class) = usable(quirk.provider)
    {
        return Ok(Picked { kind: quirk.provider, class, reason: by_quirk(quirk) });
    }
    if let Some(wish) = &device.preference
        && let Some(class) = usable(wish.provider)
    {
        return Ok(Picked { kind: wish.provider, class, reason: by_preference(wish) });
    }
    measured(device, inputs, &usable)
        .ok_or_else(|| refusal(RefusalCode::NoProvider, device, "Nothing covers it", "unplug it"))
}

/// The cheapest of all that cover it; without a measurement of the best class its first.
fn measured(
    device: &DeviceCaps,
    inputs: Inputs<'_>,
    usable: &impl Fn(ProviderKind) -> Option<Class>,
) -> Option<Picked> {
    let best = ProviderKind::EACH.into_iter().filter_map(usable).min()?;
    let kinds = || ProviderKind::EACH.into_iter().filter(|kind| usable(*kind) == Some(best));
    // A wide report is not cheaper than a narrow one that nobody has measured.
    let is_known = kinds().any(|kind| inputs.costs.measured.iter().any(|m| m.provider == kind));
    let total = |cost: &Measured| {
        let fits = usable(cost.provider).is_some() && fits(device, cost.provider, cost.page_size);
        (is_known && fits).then(|| cost.total_ns().saturating_add(beside(device, inputs, cost)))
    };
    let Some(cost) = inputs.costs.best(total) else {
        let text = match kinds().count() {
            1 => format!("the only one of class {best}"),
            _ => format!("the first of class {best}, for want of measurements"),
        };
        let reason = Reason::new(Decider::Default, text);
        return Some(Picked { kind: kinds().next()?, class: best, reason });
    };
    let class = usable(cost.provider)?;
    let text = format!(
        "measured: {} at {} costs {} ns a round, the least of what covers it",
        cost.provider,
        cost.page_size,
        cost.total_ns()
    );
    let reason = Reason::new(Decider::Measured, text);
    Some(Picked { kind: cost.provider, class, reason })
}

/// What has to run beside a provider for this device: its pins beside a recorder.
fn beside(device: &DeviceCaps, inputs: Inputs<'_>, cost: &Measured) -> u64 {
    let pins = inputs.costs.get(ProviderKind::Pinned, TrackingPageSize::K4);
    let needed = cost.provider.is_recorder() && device.pins != Pins::None;
    pins.filter(|_| needed).map_or(0, Measured::total_ns)
}

fn by_quirk(quirk: &Quirk) -> Reason {
    Reason::new(Decider::Quirk, format!("quirk: {}", quirk.reason))
}

fn by_preference(wish: &Preference) -> Reason {
    let text = format!("the plugin prefers {}: {}", wish.provider, wish.reason);
    Reason::new(Decider::Preference, text)
}

/// True if the provider can do this page size.
fn fits(device: &DeviceCaps, kind: ProviderKind, size: TrackingPageSize) -> bool {
    match (kind, device.log) {
        (ProviderKind::Device, Some(log)) => {
            clamp(size, log.min_page_size, log.max_page_size) == size
        }
        _ => true,
    }
}

fn clamp(size: TrackingPageSize, min: TrackingPageSize, max: TrackingPageSize) -> TrackingPageSize {
    size.min(max).max(min)
}

/// The page size, decided in the same order, by whoever speaks of the provider picked.
fn page_size(
    device: &DeviceCaps,
    choice: Choice,
    inputs: Inputs<'_>,
    space: &SpaceCaps,
    picked: &Picked,
) -> (TrackingPageSize, Reason) {
    let kind = picked.kind;
    if kind == ProviderKind::All {
        let reason = Reason::new(Decider::Default, "mapped pages are reported as 4K");
        return (TrackingPageSize::K4, reason);
    }
    let operator =
        || choice.page_size.map(|size| (size, Reason::new(Decider::Operator, "operator")));
    let quirk = || {
        let auto = picked.reason.by != Decider::Operator;
        let quirk = inputs.quirks.find(device, space).filter(|q| auto && q.provider == kind)?;
        quirk.page_size.map(|size| (size, by_quirk(quirk)))
    };
    let preference = || {
        let wish = device.preference.as_ref().filter(|wish| wish.provider == kind)?;
        wish.page_size.map(|size| (size, by_preference(wish)))
    };
    let measured = || {
        let cost = inputs.costs.cheapest(kind, |size| fits(device, kind, size))?;
        let text = format!("measured: {} costs the least of all sizes", cost.page_size);
        Some((cost.page_size, Reason::new(Decider::Measured, text)))
    };
    let finest =
        || (TrackingPageSize::K4, Reason::new(Decider::Default, "the size of a dirty bit"));
    let asked = operator().or_else(quirk).or_else(preference).or_else(measured);
    let (size, reason) = asked.unwrap_or_else(finest);
    match device.log {
        Some(log) if !fits(device, kind, size) => {
            let (min, max) = (log.min_page_size, log.max_page_size);
            let text = format!("{}: {size}, but the log does {min} to {max}", reason.text);
            (clamp(size, min, max), Reason::new(reason.by, text))
        }
        _ => (size, reason),
    }
}

fn early_ndma(
    device: &DeviceCaps,
    inputs: Inputs<'_>,
    class: Class,
) -> Result<(bool, Reason), Refusal> {
    let named = inputs.policy.named(device).early_ndma;
    let by_name = named.is_some();
    let wish = named.or(inputs.policy.global.early_ndma);
    let said = |text: &str| Reason::new(Decider::Operator, format!("operator: {text}"));
    match wish {
        None => Ok((false, Reason::new(Decider::Default, "not asked for"))),
        Some(EarlyNdma::Off) => Ok((false, said("off"))),
        Some(EarlyNdma::On) if !device.ndma && by_name => Err(refusal(
            RefusalCode::NoNdma,
            device,
            format!("Early NDMA is asked for, which plugin {} does not offer", device.plugin),
            "drop early-ndma for it",
        )),
        Some(_) if !device.ndma => Ok((false, said("where possible; this device has no NDMA"))),
        Some(EarlyNdma::On) => Ok((true, said("on"))),
        Some(EarlyNdma::Untracked) if class == Class::AllMapped => {
            Ok((true, said("untracked devices, and nothing else covers this one")))
        }
        Some(EarlyNdma::Untracked) => Ok((false, said("untracked devices; this one is tracked"))),
    }
}

/// The providers that would do, for a hint.
fn names(class_of: &impl Fn(ProviderKind) -> Option<Class>) -> String {
    let kinds = ProviderKind::EACH.into_iter().filter(|kind| class_of(*kind).is_some());
    kinds.map(ProviderKind::name).collect::<Vec<_>>().join(", ")
}
