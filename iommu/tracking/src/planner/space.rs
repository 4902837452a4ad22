//! The decisions for the devices of one address space, made to fit each other.

use crate::caps::{DeviceCaps, Dma, SpaceCaps};
use crate::page_size::TrackingPageSize;
use crate::plan::{Decider, DevicePlan, Plan, ProviderPlan, Reason, Refusal, RefusalCode};
use crate::planner::{Inputs, device, refusal};
use crate::provider::{Class, ProviderKind};

pub(super) fn plan(
    space: &SpaceCaps,
    devices: &[DeviceCaps],
    inputs: Inputs<'_>,
) -> Result<Plan, Vec<Refusal>> {
    let mut plans = Vec::new();
    let mut refusals = Vec::new();
    for caps in devices {
        match device::plan(caps, space, inputs) {
            Ok(plan) => plans.push(plan),
            Err(more) => refusals.extend(more),
        }
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let recorder = one_recorder(&mut plans, devices, space)?;
    let worst = |early: bool| {
        let counted = plans.iter().filter(|plan| !(early && plan.early_ndma));
        counted.map(|plan| plan.class).max().unwrap_or(Class::Exact)
    };
    let (class, class_after_ndma) = (worst(false), worst(true));
    let requires = |device: &DeviceCaps| inputs.policy.of(device).require_exact == Some(true);
    let require_exact = devices.iter().any(requires);
    if require_exact && class_after_ndma != Class::Exact {
        return Err(not_exact(&plans, devices));
    }
    let providers = providers(&plans, devices, space, recorder, inputs);
    Ok(Plan {
        space: space.label.clone(),
        devices: plans,
        providers,
        class,
        class_after_ndma,
        require_exact,
    })
}

/// The domain records in one way, and reports in one page size: whoever has more say decides on
/// the way, and the smallest size asked for is right for all.
fn one_recorder(
    plans: &mut [DevicePlan],
    devices: &[DeviceCaps],
    space: &SpaceCaps,
) -> Result<Option<(ProviderKind, Reason)>, Vec<Refusal>> {
    let of = |kind: ProviderKind, plans: &[DevicePlan]| {
        let own = plans.iter().filter(|plan| plan.provider == Some(kind));
        own.max_by_key(|plan| plan.reason.by).map(|plan| (plan.label.clone(), plan.reason.clone()))
    };
    let (iommu, fault) = (of(ProviderKind::Iommu, plans), of(ProviderKind::Fault, plans));
    let (kind, label, reason) = match (iommu, fault) {
        (None, None) => return Ok(None),
        (Some((label, reason)), None) => (ProviderKind::Iommu, label, reason),
        (None, Some((label, reason))) => (ProviderKind::Fault, label, reason),
        (Some((a, iommu)), Some((b, fault))) => {
            if iommu.by == Decider::Operator && fault.by == Decider::Operator {
                return Err(conflict(&a, &b, devices, space));
            }
            if fault.by > iommu.by {
                (ProviderKind::Fault, b, fault)
            } else {
                (ProviderKind::Iommu, a, iommu)
            }
        }
    };
    let recorded = |plan: &&mut DevicePlan| plan.provider.is_some_and(ProviderKind::is_recorder);
    for plan in plans.iter_mut().filter(recorded) {
        if plan.provider != Some(kind) {
            let text = format!("its address space records by {kind}, for {label}");
            plan.provider = Some(kind);
            plan.reason = Reason::new(reason.by, text);
        }
    }
    let sizes = plans.iter_mut().filter(recorded).map(|plan| plan.page_size);
    let size = sizes.min().unwrap_or_default();
    for plan in plans.iter_mut().filter(recorded).filter(|plan| plan.page_size != size) {
        let text = format!("{size}, the smallest asked for in this address space");
        plan.page_size_reason = Reason::new(plan.page_size_reason.by, text);
        plan.page_size = size;
    }
    Ok(Some((kind, reason)))
}

fn conflict(a: &str, b: &str, devices: &[DeviceCaps], space: &SpaceCaps) -> Vec<Refusal> {
    let about = devices.iter().find(|device| device.label == b);
    let reason = format!(
        "The operator asks for iommu for {a} and for fault for {b}, but address space {} records \
         in one way at a time",
        space.label
    );
    let hint = "ask for one of them, or put the devices in two address spaces";
    about.map(|device| refusal(RefusalCode::Conflict, device, reason, hint)).into_iter().collect()
}

/// Names every device that keeps the address space from being exact.
fn not_exact(plans: &[DevicePlan], devices: &[DeviceCaps]) -> Vec<Refusal> {
    let worse = |plan: &DevicePlan| plan.class != Class::Exact && !plan.early_ndma;
    let both = plans.iter().zip(devices).filter(|(plan, _)| worse(plan));
    both.map(|(plan, device)| {
        let hint = if device.ndma {
            "put it in NDMA early, use another provider, or move it to another address space"
        } else {
            "use another provider, move it to another address space, or unplug it"
        };
        let provider = plan.provider.map_or("none", ProviderKind::name);
        let reason = format!(
            "require=exact, but with provider {provider} its reports are {} ({})",
            plan.class, plan.reason
        );
        refusal(RefusalCode::NotExact, device, reason, hint)
    })
    .collect()
}

fn providers(
    plans: &[DevicePlan],
    devices: &[DeviceCaps],
    space: &SpaceCaps,
    recorder: Option<(ProviderKind, Reason)>,
    inputs: Inputs<'_>,
) -> Vec<ProviderPlan> {
    let mut providers = Vec::new();
    let measured =
        |kind, size: TrackingPageSize| inputs.costs.get(kind, size).map(|c| c.total_ns());
    if let Some((kind, reason)) = recorder {
        let users = || plans.iter().filter(|plan| plan.provider == Some(kind));
        let page_size = users().map(|plan| plan.page_size).min().unwrap_or_default();
        // It sees whoever passes the second stage, asked for or not.
        let seen = devices.iter().filter(|d| device::class_of(kind, d, space).is_some());
        providers.push(ProviderPlan {
            provider: kind,
            covers: seen.map(|device| device.label.clone()).collect(),
            class: Class::Exact,
            page_size,
            expected_ns: measured(kind, page_size).or_else(|| {
                let hints = users().filter_map(|plan| hint(plan, devices));
                hints.max()
            }),
            reason,
        });
    }
    for plan in plans {
        let own = |provider, class, reason: &Reason| ProviderPlan {
            provider,
            covers: vec![plan.label.clone()],
            class,
            page_size: plan.page_size,
            expected_ns: measured(provider, plan.page_size).or_else(|| {
                (plan.provider == Some(provider)).then(|| hint(plan, devices)).flatten()
            }),
            reason: reason.clone(),
        };
        if plan.provider == Some(ProviderKind::Device) {
            providers.push(own(ProviderKind::Device, Class::Exact, &plan.reason));
        }
        if plan.provider == Some(ProviderKind::Pinned) {
            providers.push(own(ProviderKind::Pinned, Class::Pinned, &plan.reason));
        } else if plan.pins {
            let text = "it pins, and writes to pinned memory pass no second stage";
            let reason = Reason::new(Decider::Default, text);
            providers.push(own(ProviderKind::Pinned, Class::Pinned, &reason));
        }
    }
    let wide = || plans.iter().filter(|plan| plan.provider == Some(ProviderKind::All));
    if let Some(first) = wide().next() {
        let through = devices.iter().filter(|d| d.dma == Dma::ThroughIommu);
        providers.push(ProviderPlan {
            provider: ProviderKind::All,
            covers: through.map(|device| device.label.clone()).collect(),
            class: Class::AllMapped,
            page_size: TrackingPageSize::K4,
            expected_ns: measured(ProviderKind::All, TrackingPageSize::K4),
            reason: Reason::new(
                first.reason.by,
                format!("degraded: nothing narrower covers {} ({})", first.label, first.reason),
            ),
        });
    }
    providers
}

/// What the plugin says that its own wish costs, if that is what was taken.
fn hint(plan: &DevicePlan, devices: &[DeviceCaps]) -> Option<u64> {
    let device = devices.iter().find(|device| device.rid == plan.rid)?;
    let wish = device.preference.as_ref()?;
    (Some(wish.provider) == plan.provider).then_some(wish.cost_hint_ns).flatten()
}
