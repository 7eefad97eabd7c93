use super::*;

#[test]
fn attributes_come_back_as_written() {
    let mut buf = Vec::new();
    put_u32(&mut buf, 1, 0x01020304);
    put_str(&mut buf, 2, "abcd");
    let nest = begin_nest(&mut buf, 3);
    put_u64(&mut buf, 4, 5);
    end_nest(&mut buf, nest);
    assert_eq!(buf[..8], [8, 0, 1, 0, 1, 2, 3, 4], "numbers are in network order");
    assert_eq!(buf[8..20], [9, 0, 2, 0, b'a', b'b', b'c', b'd', 0, 0, 0, 0], "padded");
    let attributes = Attributes::new(&buf);
    assert_eq!(attributes.u32(1), Some(0x01020304));
    assert_eq!(attributes.str(2), Some("abcd"));
    assert_eq!(attributes.nest(3).u64(4), Some(5));
    assert_eq!(attributes.u32(9), None);
    assert_eq!(attributes.u64(1), None, "a number of another width is none");
}

#[test]
fn the_last_of_two_equal_attributes_counts() {
    let mut buf = Vec::new();
    put_u32(&mut buf, 1, 1);
    put_u32(&mut buf, 1, 2);
    assert_eq!(Attributes::new(&buf).u32(1), Some(2));
}

#[test]
fn malformed_attributes_end_the_sequence() {
    let cases: [(&str, &[u8]); 5] = [
        ("empty", &[]),
        ("half a header", &[8, 0, 1]),
        ("shorter than its header", &[3, 0, 1, 0]),
        ("length zero", &[0, 0, 1, 0, 0, 0, 0, 0]),
        ("longer than the buffer", &[9, 0, 1, 0, 1, 2, 3, 4]),
    ];
    for (name, bytes) in cases {
        assert_eq!(Attributes::new(bytes).count(), 0, "{name}");
    }
}

#[test]
fn messages_come_back_as_written() {
    let mut buf = Vec::new();
    for seq in [7, 8] {
        let start = begin_message(&mut buf, nft_type(NFT_MSG_NEWSET), NLM_F_ACK, seq, [2, 0, 0, 0]);
        put_str(&mut buf, NFTA_SET_NAME, "x");
        end_message(&mut buf, start);
    }
    let messages: Vec<_> = Messages::new(&buf).collect::<Result<_, _>>().unwrap();
    assert_eq!(messages.iter().map(|m| m.seq).collect::<Vec<_>>(), [7, 8]);
    assert_eq!(messages[0].nft(), Some(NFT_MSG_NEWSET));
    assert_eq!(messages[0].family(), Some(2));
    assert_eq!(messages[0].flags, NLM_F_ACK);
    assert_eq!(messages[0].attributes().str(NFTA_SET_NAME), Some("x"));
}

#[test]
fn every_truncation_of_a_message_is_told() {
    let mut buf = Vec::new();
    let start = begin_message(&mut buf, nft_type(NFT_MSG_NEWSET), 0, 1, [2, 0, 0, 0]);
    put_u32(&mut buf, NFTA_SET_FLAGS, 1);
    end_message(&mut buf, start);
    for len in 1..buf.len() {
        let last = Messages::new(&buf[..len]).last();
        assert_eq!(last, Some(Err(Truncated)), "{len} bytes");
    }
    let lying = [0xff; 32];
    assert_eq!(Messages::new(&lying).collect::<Vec<_>>(), [Err(Truncated)]);
    let zero = [0; 32];
    assert_eq!(Messages::new(&zero).collect::<Vec<_>>(), [Err(Truncated)], "no endless loop");
}
