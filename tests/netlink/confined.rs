//! Where the kernel does not let a socket's buffers be forced: batches that fit.

use kubeweir::kernel::{CommitError, Kernel, Op};
use kubeweir::model::Family;
use kubeweir::netlink::NetlinkKernel;

use crate::commit::commit;
use crate::netns::in_netns;
use crate::shapes::everything;

/// Less than a hundredth of what a user namespace is granted by default.
const LARGEST: usize = 4096;

// N5: in parts, the same table comes about; what cannot be parted says how long it is.
#[test]
fn long_transactions_are_committed_in_parts() {
    for family in Family::BOTH {
        let whole = in_netns(|| {
            let mut kernel = NetlinkKernel::open().unwrap();
            commit(&mut kernel, family, everything(family)).expect("one batch");
            kernel.dump(family).unwrap()
        });
        let (parts, committed) = in_netns(|| {
            let mut kernel = NetlinkKernel::open().unwrap();
            kernel.confine(LARGEST);
            let committed = commit(&mut kernel, family, everything(family)).expect("in parts");
            (kernel.dump(family).unwrap(), committed)
        });
        assert_eq!(parts, whole);
        assert!(committed.bytes > LARGEST, "{committed:?}");
    }
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        kernel.confine(1);
        match commit(&mut kernel, Family::V4, everything(Family::V4)) {
            Err(CommitError::Unsent { source, .. }) => {
                assert_eq!(source.raw_os_error(), Some(libc::EMSGSIZE));
            }
            other => panic!("{other:?}"),
        }
    });
}

// A refusal in the first part refuses all; in a later one, the outcome has to be read back.
#[test]
fn a_refusal_in_a_later_part_leaves_the_outcome_open() {
    in_netns(|| {
        let family = Family::V4;
        let mut kernel = NetlinkKernel::open().unwrap();
        kernel.confine(LARGEST);
        let missing = || Op::DeleteChain("missing".into());
        let early = [vec![everything(family).remove(0), missing()], everything(family)].concat();
        let outcome = commit(&mut kernel, family, early);
        assert!(matches!(outcome, Err(CommitError::Rejected(_))), "{outcome:?}");
        assert_eq!(kernel.dump(family).unwrap().table, None);
        let late = [everything(family), vec![missing()]].concat();
        let outcome = commit(&mut kernel, family, late);
        assert!(matches!(outcome, Err(CommitError::Unknown(_))), "{outcome:?}");
        assert!(kernel.dump(family).unwrap().table.is_some());
    });
}
