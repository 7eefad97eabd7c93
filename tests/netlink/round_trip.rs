//! What is committed is what is dumped, and nft prints it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use kubeweir::kernel::{DumpError, Kernel, Op};
use kubeweir::model::Family;
use kubeweir::netlink::NetlinkKernel;
use kubeweir::ruleset::{
    Counter, CtDirection, CtKey, Element, Expr, Field, Key, Name, Ownership, Rule, Ruleset, Set,
    Table,
};

use crate::commit::{commit, nft};
use crate::netns::in_netns;
use crate::shapes::{bytes, chain, elements, everything, lines, reg, rule, sets, table};

/// The table that [`everything`] makes, from its parts.
fn expected(family: Family) -> Ruleset {
    let mut ruleset = Ruleset::empty(family);
    for op in everything(family) {
        match op {
            Op::AddTable(table) => ruleset.table = Some(table),
            Op::AddChain(chain) => {
                ruleset.chains.insert(chain.name.clone(), (chain, Vec::new()));
            }
            Op::AddSet(set) => {
                ruleset.sets.insert(set.name.clone(), (set, BTreeMap::new()));
            }
            Op::AddCounter(name) => drop(ruleset.counters.insert(name, Counter::default())),
            Op::AddRule(chain, rule) => ruleset.chains.get_mut(&chain).unwrap().1.push(rule),
            Op::AddElements(set, list) => {
                let keyed = list.into_iter().map(|element| (element.key, element));
                ruleset.sets.get_mut(&set).unwrap().1.extend(keyed);
            }
            op => panic!("not part of everything: {op:?}"),
        }
    }
    let counted = &mut ruleset.sets.get_mut("counted").unwrap().1;
    counted.values_mut().for_each(|element| element.packets = Some(0));
    ruleset
}

fn assert_same(found: &Ruleset, expected: &Ruleset) {
    assert_eq!(found.table, expected.table);
    for (name, chain) in &expected.chains {
        assert_eq!(found.chains.get(name), Some(chain), "chain {name}");
    }
    for (name, set) in &expected.sets {
        assert_eq!(found.sets.get(name), Some(set), "set {name}");
    }
    assert_eq!(found, expected);
}

#[test]
fn a_dump_equals_what_was_committed() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        for family in Family::BOTH {
            assert_eq!(kernel.dump(family).unwrap(), Ruleset::empty(family));
            commit(&mut kernel, family, everything(family)).unwrap();
            assert_same(&kernel.dump(family).unwrap(), &expected(family));
        }
    });
}

#[test]
fn committing_the_same_again_changes_nothing_but_appends_rules() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        let family = Family::V4;
        commit(&mut kernel, family, everything(family)).unwrap();
        let without_rules =
            everything(family).into_iter().filter(|op| !matches!(op, Op::AddRule(..))).collect();
        commit(&mut kernel, family, without_rules).unwrap();
        assert_same(&kernel.dump(family).unwrap(), &expected(family));
    });
}

#[test]
fn deletions_and_flushes() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        for family in Family::BOTH {
            commit(&mut kernel, family, everything(family)).unwrap();
            let names = ["nat", "masquerade", "filter", "other"];
            let mut ops: Vec<Op> = names.iter().map(|&n| Op::FlushChain(n.into())).collect();
            ops.extend(elements(family).into_iter().map(|(s, list)| Op::DeleteElements(s, list)));
            commit(&mut kernel, family, ops).unwrap();
            let dumped = kernel.dump(family).unwrap();
            assert!(dumped.chains.values().all(|(_, rules)| rules.is_empty()), "{dumped:?}");
            assert!(dumped.sets.values().all(|(_, elements)| elements.is_empty()), "{dumped:?}");

            let mut ops: Vec<Op> =
                elements(family).into_iter().map(|(s, list)| Op::AddElements(s, list)).collect();
            ops.push(rule("filter", lines(family).remove(4).exprs[..3].to_vec()));
            ops.extend(sets(family).into_iter().map(|set| Op::FlushSet(set.name)));
            ops.extend(sets(family).into_iter().map(|set| Op::DeleteSet(set.name)));
            ops.extend(names.map(|name| Op::DeleteChain(name.into())));
            commit(&mut kernel, family, ops).unwrap();
            let Ruleset { table, counters, .. } = expected(family);
            let bare = Ruleset { table, counters, ..Ruleset::empty(family) };
            assert_eq!(kernel.dump(family).unwrap(), bare);

            commit(&mut kernel, family, vec![Op::DeleteTable]).unwrap();
            assert_eq!(kernel.dump(family).unwrap(), Ruleset::empty(family));
        }
    });
}

#[test]
fn nft_prints_every_shape() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        for family in Family::BOTH {
            commit(&mut kernel, family, everything(family)).unwrap();
            let listing = nft(&format!("list table {} kube-proxy", family.nft())).unwrap();
            let printed: Vec<&str> = listing.lines().map(str::trim).collect();
            for line in lines(family) {
                let text = if family == Family::V4 { line.v4 } else { line.v6 };
                assert!(printed.contains(&text), "{text}\nis missing in\n{listing}");
            }
            for text in [
                "comment \"rules for services; program 1\"",
                "comment \"regular\"",
                "comment \"cluster IPs\"",
                "accept comment \"what is left\"",
                "type nat hook prerouting priority dstnat; policy accept;",
                "type nat hook postrouting priority srcnat; policy accept;",
                "type filter hook input priority -110; policy accept;",
                "flags interval",
                "flags dynamic,timeout",
                "timeout 10s",
                "size 1000",
                "counter",
            ] {
                assert!(printed.contains(&text), "{text}\nis missing in\n{listing}");
            }
            for text in elements_as_printed(family) {
                assert!(listing.contains(text), "{text}\nis missing in\n{listing}");
            }
        }
    });
}

fn elements_as_printed(family: Family) -> [&'static str; 8] {
    match family {
        Family::V4 => [
            "10.0.0.1, 10.0.0.2",
            "10.0.0.1 . tcp . 80 comment \"ns/web:http\"",
            "10.0.0.1 . tcp . 80 : 10.0.0.9 . 8080",
            "10.0.0.2 . tcp . 80 . 0x00000001 comment \"ns/api\" : 10.0.0.11 . 8080",
            "10.0.0.0/28, 10.0.0.16",
            "10.0.0.64/26, 10.0.0.200-255.255.255.255",
            "10.0.0.1 . tcp . 80 : goto other",
            "0x00000005",
        ],
        Family::V6 => [
            "fd00::1,",
            "fd00::1 . tcp . 80 comment \"ns/web:http\"",
            "fd00::1 . tcp . 80 : fd00::9 . 8080",
            "fd00::2 . tcp . 80 . 0x00000001 comment \"ns/api\" : fd00::b . 8080",
            "fd00::/124",
            "fd00::40/122",
            "fd00::1 . tcp . 80 : goto other",
            "0x00000005",
        ],
    }
}

#[test]
fn foreign_tables_are_not_read() {
    in_netns(|| {
        nft("add table ip other").unwrap();
        nft("add chain ip other nat").unwrap();
        nft("add rule ip other nat accept").unwrap();
        nft("add set ip other s { type ipv4_addr; }").unwrap();
        let mut kernel = NetlinkKernel::open().unwrap();
        assert_eq!(kernel.dump(Family::V4).unwrap(), Ruleset::empty(Family::V4));
        commit(&mut kernel, Family::V4, vec![table(), chain("nat")]).unwrap();
        let dumped = kernel.dump(Family::V4).unwrap();
        assert_eq!(dumped.chains.len(), 1);
        assert_eq!(dumped.chains[&Name::from("nat")].1, Vec::<Rule>::new());
        assert!(dumped.sets.is_empty());
        assert_eq!(kernel.table(Family::V6).unwrap(), None);
        let plain = Table { comment: None, owner: Ownership::Nobody, persist: false };
        assert_eq!(kernel.table(Family::V4).unwrap(), Some(plain));
    });
}

#[test]
fn foreign_rules_in_our_table_are_dumped_by_name() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        commit(&mut kernel, Family::V4, vec![table(), chain("c")]).unwrap();
        nft("add rule ip kube-proxy c limit rate 1/second masquerade").unwrap();
        let dumped = kernel.dump(Family::V4).unwrap();
        let names: Vec<String> =
            dumped.chains[&Name::from("c")].1[0].exprs.iter().map(|e| format!("{e:?}")).collect();
        assert_eq!(names, ["Unknown(\"limit\")", "Unknown(\"masq\")"]);
    });
}

#[test]
fn one_set_can_be_dumped_with_its_lifetimes() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        let family = Family::V4;
        let name = Name::from("affinity-x");
        assert_eq!(kernel.dump_set(family, &name).unwrap(), []);
        commit(&mut kernel, family, everything(family)).unwrap();
        let address = |last| Key::new().address(crate::shapes::address(family, last));
        let lifetime = kubeweir::ruleset::Lifetime { timeout: 60_000, expires: 30_000 };
        let entries = vec![
            Element::data(address(1), address(9).port(80)),
            Element { lifetime: Some(lifetime), ..Element::data(address(2), address(9).port(80)) },
        ];
        commit(&mut kernel, family, vec![Op::AddElements(name.clone(), entries)]).unwrap();
        let mut dumped = kernel.dump_set(family, &name).unwrap();
        dumped.sort_by_key(|element| element.key);
        let lifetimes: Vec<_> = dumped.iter().map(|e| e.lifetime.unwrap()).collect();
        assert_eq!(lifetimes[0].timeout, 10_000, "the set's own");
        assert!((5_000..=10_000).contains(&lifetimes[0].expires), "{lifetimes:?}");
        assert_eq!(lifetimes[1].timeout, 60_000);
        assert!((20_000..=30_000).contains(&lifetimes[1].expires), "{lifetimes:?}");
    });
}

/// Rules with the expressions that none of the printed lines has.
fn other_expressions(family: Family) -> Vec<Vec<Expr>> {
    let (source, destination) = match family {
        Family::V4 => (CtKey::SrcIp, CtKey::DstIp),
        Family::V6 => (CtKey::SrcIp6, CtKey::DstIp6),
    };
    let mut exprs: Vec<Expr> = [source, destination, CtKey::ProtoDst]
        .into_iter()
        .flat_map(|key| {
            [CtDirection::Original, CtDirection::Reply].map(|direction| Expr::Ct {
                key,
                direction: Some(direction),
                dst: reg(0),
            })
        })
        .collect();
    // The kernel takes a direction with the protocol but does not give it back.
    exprs.push(Expr::Ct { key: CtKey::Protocol, direction: None, dst: reg(0) });
    exprs.extend((0..16).map(|word| Expr::Random { modulus: 7, dst: reg(word) }));
    let mut rules: Vec<Vec<Expr>> = exprs.into_iter().map(|expr| vec![expr]).collect();
    rules.push(vec![
        Expr::Immediate { data: bytes(&[1, 2, 3, 4, 5, 6, 7, 8]), dst: reg(6) },
        Expr::Bitwise { src: reg(6), dst: reg(1), mask: bytes(&[0xff; 8]), xor: bytes(&[0x0f; 8]) },
        Expr::Counter { packets: u64::MAX, bytes: 1 },
    ]);
    rules
}

#[test]
fn the_other_expressions_and_every_register_come_back() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        for family in Family::BOTH {
            let committed = other_expressions(family);
            let rules = committed.iter().map(|exprs| rule("c", exprs.clone()));
            let ops = [table(), chain("c")].into_iter().chain(rules).collect();
            commit(&mut kernel, family, ops).unwrap();
            let dumped = kernel.dump(family).unwrap();
            let (_, rules) = &dumped.chains["c"];
            let dumped: Vec<Vec<Expr>> = rules.iter().map(|rule| rule.exprs.clone()).collect();
            assert_eq!(dumped, committed);
        }
    });
}

#[test]
fn names_and_comments_at_their_limits_come_back() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        let name = "n".repeat(Name::MAX_LEN);
        let comment = "c".repeat(251);
        let set =
            Set { comment: Some("c".repeat(200)), ..Set::plain(name.as_str(), vec![Field::Mark]) };
        let member = Element::member(Key::new().slot(1)).with_comment(comment.as_str().into());
        let too_long = Element::member(Key::new().slot(2)).with_comment("c".repeat(300).into());
        let rule = Rule { exprs: vec![], comment: Some(comment.clone()) };
        let ops = vec![
            Op::AddTable(Table {
                comment: Some(comment.clone()),
                owner: Ownership::Nobody,
                persist: false,
            }),
            chain(&name),
            Op::AddSet(set.clone()),
            Op::AddElements(name.as_str().into(), vec![member.clone(), too_long]),
            Op::AddRule(name.as_str().into(), rule.clone()),
        ];
        commit(&mut kernel, Family::V4, ops).unwrap();
        let dumped = kernel.dump(Family::V4).unwrap();
        assert_eq!(dumped.table.unwrap().comment, Some(comment.clone()));
        assert_eq!(dumped.chains[name.as_str()].1, [rule]);
        let (dumped, elements) = &dumped.sets[name.as_str()];
        assert_eq!(dumped, &set);
        assert_eq!(elements[&Key::new().slot(1)], member);
        let cut = elements[&Key::new().slot(2)].comment.as_deref();
        assert_eq!(cut, Some(comment.as_str()), "cut, not refused");
    });
}

#[test]
fn a_dump_shows_one_generation_while_another_thread_commits() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        let family = Family::V4;
        let sets = ["a", "b"].map(|name| Op::AddSet(Set::plain(name, vec![Field::Mark])));
        commit(&mut kernel, family, [table()].into_iter().chain(sets).collect()).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // A thread starts in the namespace of the one that started it.
            scope.spawn(|| {
                let mut writer = NetlinkKernel::open().unwrap();
                let member = || vec![Element::member(Key::new().slot(1))];
                while !done.load(Ordering::Relaxed) {
                    let add = ["a", "b"].map(|set| Op::AddElements(set.into(), member()));
                    commit(&mut writer, family, add.to_vec()).unwrap();
                    let delete = ["a", "b"].map(|set| Op::DeleteElements(set.into(), member()));
                    commit(&mut writer, family, delete.to_vec()).unwrap();
                }
            });
            for _ in 0..200 {
                match kernel.dump(family) {
                    Ok(dump) => assert_eq!(dump.sets["a"].1.len(), dump.sets["b"].1.len()),
                    Err(DumpError::Interrupted(table)) => assert_eq!(table, "ip"),
                    Err(error) => panic!("{error:?}"),
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(kernel.dump(family).unwrap().sets["a"].1.len(), 0);
    });
}
