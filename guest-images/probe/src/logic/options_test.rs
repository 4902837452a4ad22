use super::*;

#[test]
fn display_and_parse_agree() {
    let options = Options {
        ws: 1 << 30,
        rate: RATE_MAX,
        seed: 77,
        dma: Dma::On,
        dma_rate: 5000,
        dma_batch: 64,
        dma_ws: 8 << 20,
        dma_scratch: 65536,
        vcpus: 4,
        status_ms: 100,
        seconds: 9,
        sweep_ms: 0,
        lost_ms: 1500,
        idle: Idle::Spin,
        nap_us: 250,
        tsc_khz: 1_996_250,
        trigger: Some(Trigger { action: Action::TripleFault, at: 3 }),
    };
    for options in [options, Options::DEFAULT] {
        let line = options.to_string();
        assert_eq!(Options::parse(&line), Ok((options, 0)), "{line}");
    }
}

#[test]
fn sizes_take_suffixes() {
    let ws = |text: &'static str| Options::parse(text).map(|(options, _)| options.ws);
    assert_eq!(ws("ws=64K"), Ok(64 << 10));
    assert_eq!(ws("ws=16m"), Ok(16 << 20));
    assert_eq!(ws("ws=2G"), Ok(2 << 30));
    assert_eq!(ws("ws=8192"), Ok(8192));
}

#[test]
fn strange_words_are_counted_and_left_alone() {
    let line = "console=ttyS0 quiet rate=5 virtio_mmio.device=512@0xfeb00e00:12";
    let (options, ignored) = Options::parse(line).expect("No option is wrong here");
    assert_eq!((options.rate, ignored), (5, 3));
}

#[test]
fn wrong_values_are_named() {
    for (line, key, value) in [
        ("seed=2 ws=abc", "ws", "abc"),
        ("ws=4095", "ws", "4095"),
        ("ws=M", "ws", "M"),
        ("ws=", "ws", ""),
        ("ws=99999999999999G", "ws", "99999999999999G"),
        ("vcpus=0", "vcpus", "0"),
        ("vcpus=9", "vcpus", "9"),
        ("dma=maybe", "dma", "maybe"),
        ("dma_batch=65", "dma_batch", "65"),
        ("trigger=reset", "trigger", "reset"),
        ("trigger=melt@1", "trigger", "melt@1"),
        ("idle=", "idle", ""),
        ("rate=-1", "rate", "-1"),
    ] {
        assert_eq!(Options::parse(line), Err(BadOption { key, value }), "{line}");
    }
}
