//! The second stage in the format that the domain was configured with. Each arm is compiled for
//! its format; which arm it is, is asked once an operation or IOTLB miss, never on a hit.

use crate::spec::{AmdV1, Mock, TableFormat, VtdSecondStage};
use crate::table::SecondStage;

/// A second stage of any format.
pub(crate) enum Tree {
    Vtd(SecondStage<VtdSecondStage>),
    Amd(SecondStage<AmdV1>),
    Mock(SecondStage<Mock>),
}

impl Tree {
    pub(crate) fn new(format: TableFormat, limit: u32) -> Self {
        match format {
            TableFormat::VtdSecondStage => Self::Vtd(SecondStage::new(limit)),
            TableFormat::AmdV1 => Self::Amd(SecondStage::new(limit)),
            TableFormat::Mock => Self::Mock(SecondStage::new(limit)),
        }
    }
}

/// `with!(tree, stage => expression)`: the expression for the format at hand.
macro_rules! with {
    ($tree:expr, $stage:ident => $body:expr) => {
        match &$tree {
            $crate::tree::Tree::Vtd($stage) => $body,
            $crate::tree::Tree::Amd($stage) => $body,
            $crate::tree::Tree::Mock($stage) => $body,
        }
    };
}
pub(crate) use with;
