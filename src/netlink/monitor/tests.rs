use super::*;
use crate::netlink::attribute::{begin_message, end_message, nft_type, put_str, put_u32};

fn message(kind: u8, portid: u32, family: u8, texts: &[(u16, &str)]) -> Vec<u8> {
    let mut buf = Vec::new();
    let start = begin_message(&mut buf, nft_type(kind), 0, 0, [family, 0, 0, 0]);
    buf[12..16].copy_from_slice(&portid.to_ne_bytes());
    for &(attribute, text) in texts {
        put_str(&mut buf, attribute, text);
    }
    if kind == NFT_MSG_NEWGEN {
        put_u32(&mut buf, NFTA_GEN_ID, 1);
    }
    end_message(&mut buf, start);
    buf
}

fn generation(portid: u32) -> Vec<u8> {
    message(NFT_MSG_NEWGEN, portid, 0, &[(NFTA_GEN_PROC_NAME, "nft")])
}

fn rule(portid: u32, table: &str) -> Vec<u8> {
    let texts = [(NFTA_RULE_TABLE, table), (NFTA_RULE_CHAIN, "services")];
    message(NFT_MSG_NEWRULE, portid, 2, &texts)
}

#[test]
fn notices() {
    let foreign = Notice::Foreign {
        family: Family::V4,
        changes: ["add rule services".to_owned()].into(),
        by: Some("nft".to_owned()),
    };
    let cases = [
        ("ours", [rule(7, "kube-proxy"), generation(7)].concat(), vec![]),
        ("another table", [rule(8, "filter"), generation(8)].concat(), vec![]),
        ("not committed yet", rule(8, "kube-proxy"), vec![]),
        ("foreign", [rule(8, "kube-proxy"), generation(8)].concat(), vec![foreign.clone()]),
        (
            "twice the same",
            [rule(8, "kube-proxy"), rule(8, "kube-proxy"), generation(8)].concat(),
            vec![foreign],
        ),
        ("garbage", vec![0xff; 40], vec![Notice::Overflow]),
    ];
    for (name, datagram, notices) in cases {
        let mut collector = Collector::new(7);
        collector.add(&datagram);
        assert_eq!(Vec::from(collector.ready), notices, "{name}");
    }
}
