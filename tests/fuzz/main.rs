//! Hostile bytes: the corpus, and mutations of it.
//!
//! `KUBEWEIR_FUZZ_CASES` says how many mutations each target gets. What makes a target fail is
//! printed, and belongs into `tests/fuzz/corpus/<target>/`. For longer hunts: `cargo fuzz run
//! --fuzz-dir tests/fuzz <target>`.

// Tests may panic, their helpers too.
#![allow(clippy::unwrap_used)]

mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use serde_json::{Value, json};

fn cases(default: usize) -> usize {
    let given = std::env::var("KUBEWEIR_FUZZ_CASES").ok();
    given.map_or(default, |text| text.parse().expect("a number of cases"))
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no corpus for {target}");
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Always the same, so that a failure can be had again.
const SEED: u64 = 4;

/// Feeds the corpus and `count` mutations of it to a target.
fn fuzz(
    name: &str,
    target: fn(&[u8]),
    count: usize,
    mutate: impl Fn(&[Vec<u8>], &mut dyn RngCore) -> Vec<u8>,
) {
    let (seeds, mut random) = (corpus(name), StdRng::seed_from_u64(SEED));
    let try_one = |input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
            panic!("{name} fails with {:?}", String::from_utf8_lossy(input));
        }
    };
    seeds.iter().for_each(|seed| try_one(seed));
    for _ in 0..count {
        try_one(&mutate(&seeds, &mut random));
    }
    println!("{name}: {} inputs", seeds.len() + count);
}

/// One to eight changes of bytes of a seed.
fn bytes(seeds: &[Vec<u8>], random: &mut dyn RngCore) -> Vec<u8> {
    let mut input = seeds[random.random_range(0..seeds.len())].clone();
    for _ in 0..random.random_range(1..=8) {
        let at = random.random_range(0..=input.len());
        let end = (at + random.random_range(1..=16)).min(input.len());
        match random.random_range(0..8) {
            7 => number(&mut input, random),
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => input[at] = random.random(),
            2 => input.truncate(at),
            3 => drop(input.drain(at..end)),
            4 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            5 => {
                let other = &seeds[random.random_range(0..seeds.len())];
                let from = random.random_range(0..=other.len());
                let to = (from + random.random_range(1..=64)).min(other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
            _ if at + 4 <= input.len() => {
                let odd: [u32; 5] = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX];
                let value = odd[random.random_range(0..odd.len())];
                input[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            }
            _ => {}
        }
    }
    input
}

/// Another number in place of one that is there.
fn number(input: &mut Vec<u8>, random: &mut dyn RngCore) {
    let starts =
        |at: &usize| input[*at].is_ascii_digit() && (*at == 0 || !input[*at - 1].is_ascii_digit());
    let numbers: Vec<usize> = (0..input.len()).filter(starts).collect();
    let Some(&at) = numbers.get(random.random_range(0..numbers.len().max(1))) else { return };
    let digits = input[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let odd = ["", "0", "-1", "65536", "4294967296", "9223372036854775807", "99999999999999999999"];
    let other = odd[random.random_range(0..odd.len())];
    input.splice(at..at + digits, other.bytes());
}

/// One to six changes of values of a JSON document: it stays JSON, so that it gets far.
fn values(seeds: &[Vec<u8>], random: &mut dyn RngCore) -> Vec<u8> {
    let seed = &seeds[random.random_range(0..seeds.len())];
    let mut document: Value = serde_json::from_slice(seed).expect("seeds are JSON");
    for _ in 0..random.random_range(1..=6) {
        let mut places = Vec::new();
        collect(&document, String::new(), &mut places);
        let place = places[random.random_range(0..places.len())].clone();
        let other = places[random.random_range(0..places.len())].clone();
        let other = document.pointer(&other).cloned().unwrap_or_default();
        let value = document.pointer_mut(&place).expect("it was found there");
        match (random.random_range(0..4), &mut *value) {
            (0, Value::Array(items)) => items.push(other),
            (1, Value::Array(items)) if !items.is_empty() => drop(items.remove(0)),
            (0 | 1, _) => *value = other,
            _ => *value = odd(random),
        }
    }
    document.to_string().into_bytes()
}

fn collect(value: &Value, at: String, places: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                let key = key.replace('~', "~0").replace('/', "~1");
                collect(field, format!("{at}/{key}"), places);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                collect(item, format!("{at}/{i}"), places);
            }
        }
        _ => {}
    }
    places.push(at);
}

fn odd(random: &mut dyn RngCore) -> Value {
    let values = [
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(80),
        json!(65_536),
        json!(i64::MAX),
        json!(1e300),
        json!(""),
        json!("Local"),
        json!("None"),
        json!("10.96.0.10"),
        json!("fd00:10:96::a"),
        json!("0.0.0.0/0"),
        json!("::ffff:10.0.0.1"),
        json!("x".repeat(300)),
        json!([]),
        json!({}),
        json!(["10.244.0.10", "10.244.0.11"]),
    ];
    values[random.random_range(0..values.len())].clone()
}

#[test]
fn wire_bytes() {
    fuzz("wire", targets::wire, cases(3000), bytes);
}

#[test]
fn configuration_text() {
    fuzz("configuration", targets::configuration, cases(1500), bytes);
}

#[test]
fn netlink_answers() {
    fuzz("netlink", targets::netlink, cases(20_000), bytes);
}

#[test]
fn objects_for_the_engine() {
    fuzz("engine", targets::engine, cases(400), values);
}

#[test]
fn text_of_manifests() {
    fuzz("engine", targets::engine, cases(300), bytes);
}
