use super::*;

const MESSAGE: MsiMessage = MsiMessage { address: 0x1_FEE0_1000, data: 0x4123 };

#[test]
fn the_fixed_pins_are_always_there() {
    let routes = Routes::new(4096);
    let table = routes.table().expect("it fits");
    let entries = table.as_slice();
    assert_eq!(entries.len(), 16 + 24);
    for gsi in 0..24 {
        let of = entries.iter().filter(|e| e.gsi == gsi && e.type_ == KVM_IRQ_ROUTING_IRQCHIP);
        assert_eq!(of.count(), if gsi < 16 { 2 } else { 1 }, "GSI {gsi}");
    }
}

#[test]
fn lines_come_and_go() {
    let mut routes = Routes::new(4096);
    let (a, b) = (routes.take().expect("free"), routes.take().expect("free"));
    assert_eq!((a, b), (24, 25));
    assert!(routes.knows(a) && !routes.knows(23) && !routes.knows(26) && !routes.knows(u32::MAX));
    assert_eq!(routes.table().expect("it fits").as_slice().len(), 40, "no route yet");
    assert_eq!(routes.set(a, Some(MESSAGE)), Some(None));
    assert_eq!(routes.set(a, Some(MESSAGE)), Some(Some(MESSAGE)));
    assert_eq!(routes.set(7, Some(MESSAGE)), None, "no MSI line");
    let table = routes.table().expect("it fits");
    let entry = table.as_slice().last().expect("an entry");
    assert_eq!((entry.gsi, entry.type_), (24, KVM_IRQ_ROUTING_MSI));
    assert!(routes.free(a) && !routes.free(a));
    assert_eq!(routes.table().expect("it fits").as_slice().len(), 40);
    assert_eq!(routes.take(), Some(24), "used again");
}

#[test]
fn there_is_an_end() {
    let mut routes = Routes::new(74);
    assert_eq!(routes.most(), 10);
    assert_eq!(std::iter::from_fn(|| routes.take()).count(), 10);
    let mut most = Routes::new(usize::MAX);
    while let Some(gsi) = most.take() {
        most.set(gsi, Some(MESSAGE));
    }
    assert_eq!(most.table().expect("it fits").as_slice().len(), 40 + MOST_MSI);
    assert_eq!(Routes::new(0).take(), None);
}
