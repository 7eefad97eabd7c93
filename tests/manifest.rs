//! Real directories: what is read, and how changes on disk arrive.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kubeweir::manifest::{self, ManifestError, Watching};
use kubeweir::model::{Change, Kind, Object, ObjectName};
use kubeweir::source::Sink;
use kubeweir::wire::{Decoder, Encoding};
use tempfile::TempDir;

/// Longer than any test should take; reached only by a failure.
const DEADLINE: Duration = Duration::from_secs(10);

struct Changes(Mutex<Sender<Change>>);

impl Sink for Changes {
    fn deliver(&self, change: Change) {
        // A test that has seen enough is gone.
        let _ = self.0.lock().expect("not poisoned").send(change);
    }
}

/// A followed directory and what its changes add up to.
struct Followed {
    directory: TempDir,
    watching: Watching,
    changes: Receiver<Change>,
    objects: BTreeMap<(Kind, ObjectName), Object>,
    /// Changes since the initial list.
    seen: usize,
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}}}\n"
    )
}

impl Followed {
    /// A directory with files, and its initial list.
    fn start(files: &[(&str, &str)]) -> Followed {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            fs::write(directory.path().join(name), text).expect("written");
        }
        Followed::follow(directory)
    }

    fn follow(directory: TempDir) -> Followed {
        let (sender, changes) = mpsc::channel();
        let sink = Arc::new(Changes(Mutex::new(sender)));
        let watching = manifest::start(directory.path().to_owned(), true, sink).expect("started");
        let mut followed =
            Followed { directory, watching, changes, objects: BTreeMap::new(), seen: 0 };
        for kind in Kind::ALL {
            match followed.changes.recv_timeout(DEADLINE).expect("an initial list") {
                Change::Replace(replaced, objects) => {
                    assert_eq!(replaced, kind);
                    followed.objects.extend(
                        objects.into_iter().map(|object| ((kind, object.name().clone()), object)),
                    );
                }
                other => panic!("{other:?} before the list of {kind}"),
            }
        }
        followed
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    /// `name=ClusterIP` of all Services.
    fn services(&self) -> Vec<String> {
        let services = self.objects.values().filter_map(|object| match object {
            Object::Service(service) => {
                let ip = service.cluster_ips.first().map(ToString::to_string);
                Some(format!("{}={}", service.name.name, ip.unwrap_or_default()))
            }
            _ => None,
        });
        services.collect()
    }

    /// Takes changes until the Services are these.
    #[track_caller]
    fn until(&mut self, expected: &[&str]) {
        let deadline = Instant::now() + DEADLINE;
        while self.services() != expected {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(change) = self.changes.recv_timeout(left) else {
                panic!("{:?} instead of {expected:?}", self.services());
            };
            self.seen += 1;
            match change {
                Change::Apply(object) => {
                    self.objects.insert((object.kind(), object.name().clone()), object);
                }
                Change::Delete(kind, name) => {
                    self.objects.remove(&(kind, name)).expect("only what is there is deleted");
                }
                Change::Replace(..) => panic!("a second list"),
            }
        }
    }
}

#[test]
fn the_recorded_cluster_loads_as_the_server_lists_it() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let (objects, errors) = manifest::load(&data.join("cluster"), true);
    assert!(errors.is_empty(), "{errors:?}");
    for (kind, plural, count) in [
        (Kind::Node, "nodes", 3),
        (Kind::ServiceCidr, "servicecidrs", 1),
        (Kind::Service, "services", 15),
        (Kind::EndpointSlice, "endpointslices", 15),
    ] {
        let of_kind: Vec<_> = objects.iter().filter(|object| object.kind() == kind).collect();
        assert_eq!(of_kind.len(), count, "{kind}");
        let body = fs::read(data.join(format!("wire/list-{plural}.pb"))).expect("a body");
        let list = Decoder::new(true).list(kind, Encoding::Protobuf, &Bytes::from(body));
        for object in list.expect("a list").objects {
            assert!(of_kind.contains(&&object), "{object:?}");
        }
    }
}

#[test]
fn files_that_are_read() {
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["a.yaml", "b.yml", "c.json", ".d.yaml", "e.yaml~", "f.txt", "g.yaml.swp"] {
        let name_of_service = &name.trim_start_matches('.')[..1];
        let text = match name {
            "c.json" => {
                r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"}}"#.to_owned()
            }
            _ => service(name_of_service, "10.0.0.1"),
        };
        fs::write(directory.path().join(name), text).expect("written");
    }
    fs::create_dir(directory.path().join("h.yaml")).expect("a directory");
    let (objects, errors) = manifest::load(directory.path(), true);
    assert!(errors.is_empty(), "{errors:?}");
    let names: Vec<_> = objects.iter().map(|object| &*object.name().name).collect();
    assert_eq!(names, ["a", "b", "c"]);

    let (objects, errors) = manifest::load(&directory.path().join("f.txt"), true);
    assert_eq!((objects.len(), errors.len()), (1, 0), "a file that is named is read");
    let (objects, errors) = manifest::load(&directory.path().join("none.yaml"), true);
    assert!(objects.is_empty() && matches!(errors[..], [ManifestError::Read { .. }]), "{errors:?}");
}

#[test]
fn a_directory_that_is_not_there_cannot_be_followed() {
    let directory = tempfile::tempdir().expect("a directory");
    let (sender, _) = mpsc::channel();
    let sink = Arc::new(Changes(Mutex::new(sender)));
    assert!(manifest::start(directory.path().join("none"), true, sink).is_err());
}

#[test]
fn changes_arrive_as_differences() {
    let mut followed = Followed::start(&[
        ("a.yaml", &[service("one", "10.0.0.1"), service("two", "10.0.0.2")].join("---\n")),
        ("b.yaml", &service("three", "10.0.0.3")),
    ]);
    followed.until(&["one=10.0.0.1", "three=10.0.0.3", "two=10.0.0.2"]);
    assert_eq!(followed.seen, 0);

    followed
        .write("a.yaml", &[service("one", "10.0.0.1"), service("two", "10.0.0.9")].join("---\n"));
    followed.until(&["one=10.0.0.1", "three=10.0.0.3", "two=10.0.0.9"]);
    followed.write("c.yaml", &service("four", "10.0.0.4"));
    followed.until(&["four=10.0.0.4", "one=10.0.0.1", "three=10.0.0.3", "two=10.0.0.9"]);
    fs::remove_file(followed.path("a.yaml")).expect("removed");
    followed.until(&["four=10.0.0.4", "three=10.0.0.3"]);
    assert_eq!(followed.seen, 4, "one change per object that differs");
    followed.watching.stop();
}

// A Service that came with endpoints would else be refused for a moment.
#[test]
fn endpoints_are_delivered_before_the_service_they_came_with() {
    let followed = Followed::start(&[("a.yaml", &service("one", "10.0.0.1"))]);
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: two-x\n  \
                 labels: {kubernetes.io/service-name: two}\naddressType: IPv4\n\
                 ports: [{name: \"\", port: 80, protocol: TCP}]\nendpoints: [{addresses: [10.1.0.1]}]\n";
    followed.write("b.yaml", &[service("two", "10.0.0.2").as_str(), slice].join("---\n"));
    let next = || match followed.changes.recv_timeout(DEADLINE).expect("a change") {
        Change::Apply(object) => object.kind(),
        other => panic!("{other:?}"),
    };
    assert_eq!([next(), next()], [Kind::EndpointSlice, Kind::Service]);
}

#[test]
fn a_malformed_file_keeps_its_last_good_version() {
    let good = [service("one", "10.0.0.1"), service("two", "10.0.0.2")].join("---\n");
    let mut followed = Followed::start(&[("a.yaml", &good), ("b.yaml", "nonsense: [")]);
    followed.until(&["one=10.0.0.1", "two=10.0.0.2"]);

    for broken in [
        "kind: [".to_owned(),
        format!("{}---\nkind: [", service("one", "10.0.0.9")),
        format!("{}---\n{}", service("one", "10.0.0.9"), service("two", "[1]")),
        format!("{}---\n{}", service("one", "10.0.0.9"), service("Two_", "10.0.0.2")),
    ] {
        followed.write("a.yaml", &broken);
        // What follows in another file arrives, so the broken one has been looked at.
        followed.write("c.yaml", &service("three", "10.0.0.3"));
        followed.until(&["one=10.0.0.1", "three=10.0.0.3", "two=10.0.0.2"]);
        fs::remove_file(followed.path("c.yaml")).expect("removed");
        followed.until(&["one=10.0.0.1", "two=10.0.0.2"]);
    }
    assert_eq!(followed.seen, 8, "the broken file changed nothing");

    followed.write("a.yaml", &service("one", "10.0.0.7"));
    followed.until(&["one=10.0.0.7"]);
}

#[test]
fn without_a_good_version_the_good_objects_are_served() {
    let text = format!("{}---\n{}", service("one", "10.0.0.1"), service("two", "[1]"));
    let mut followed = Followed::start(&[("a.yaml", &text)]);
    followed.until(&["one=10.0.0.1"]);
    followed
        .write("a.yaml", &[service("one", "10.0.0.1"), service("two", "10.0.0.2")].join("---\n"));
    followed.until(&["one=10.0.0.1", "two=10.0.0.2"]);
}

#[test]
fn a_rename_over_a_file_takes_effect() {
    let mut followed = Followed::start(&[("a.yaml", &service("one", "10.0.0.1"))]);
    for ip in ["10.0.0.2", "10.0.0.3"] {
        followed.write(".a.yaml.tmp", &service("one", ip));
        fs::rename(followed.path(".a.yaml.tmp"), followed.path("a.yaml")).expect("renamed");
        followed.until(&[&format!("one={ip}")]);
    }
    assert_eq!(followed.seen, 2);
    fs::rename(followed.path("a.yaml"), followed.path("a.off")).expect("renamed");
    followed.until(&[]);
}

#[test]
fn a_swap_of_a_config_map_volume_takes_effect() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().to_owned();
    let version = |name: &str, ip: &str| {
        fs::create_dir(root.join(name)).expect("a directory");
        fs::write(root.join(name).join("a.yaml"), service("one", ip)).expect("written");
    };
    version("..1", "10.0.0.1");
    symlink("..1", root.join("..data")).expect("linked");
    symlink("..data/a.yaml", root.join("a.yaml")).expect("linked");
    let mut followed = Followed::follow(directory);
    followed.until(&["one=10.0.0.1"]);

    version("..2", "10.0.0.2");
    symlink("..2", root.join("..data_tmp")).expect("linked");
    fs::rename(root.join("..data_tmp"), root.join("..data")).expect("renamed");
    fs::remove_dir_all(root.join("..1")).expect("removed");
    followed.until(&["one=10.0.0.2"]);
    assert_eq!(followed.seen, 1, "no moment without the object");
}

#[test]
fn a_file_is_read_when_its_writer_closes_it() {
    use std::io::Write;
    let mut followed = Followed::start(&[("a.yaml", &service("one", "10.0.0.1"))]);
    let mut file = fs::File::create(followed.path("a.yaml")).expect("truncated");
    file.write_all(service("one", "10.0.0.2").as_bytes()).expect("written");
    // Another file's change is seen while this one is half written.
    followed.write("b.yaml", &service("two", "10.0.0.9"));
    followed.until(&["one=10.0.0.1", "two=10.0.0.9"]);
    file.write_all(format!("---\n{}", service("three", "10.0.0.3")).as_bytes()).expect("written");
    drop(file);
    followed.until(&["one=10.0.0.2", "three=10.0.0.3", "two=10.0.0.9"]);
    assert_eq!(followed.seen, 3, "the half-written file changed nothing");
}

/// Less than an empty file is not believed for.
const A_WRITERS_TIME: Duration = Duration::from_millis(80);

#[test]
fn a_file_that_is_written_in_place_is_never_believed_empty() {
    let web = service("web", "10.96.0.10");
    let mut followed = Followed::start(&[("web.yaml", &web)]);
    let mut stood_still = 0;
    for round in 0..500 {
        let ip = format!("10.96.1.{}", round % 250);
        followed.write("other.yaml", &service("other", &ip));
        // Its truncation may come just before the directory is looked at for the other file.
        let begun = Instant::now();
        fs::write(followed.path("web.yaml"), &web).expect("written");
        stood_still += usize::from(begun.elapsed() >= A_WRITERS_TIME);
        followed.until(&[&format!("other={ip}"), "web=10.96.0.10"]);
    }
    let last = followed.changes.recv_timeout(Duration::from_millis(100));
    assert!(last.is_err(), "{last:?}");
    // A writer whose processor stood still between two system calls had left it empty for so long.
    let allowed = 500..=500 + 2 * stood_still;
    assert!(allowed.contains(&followed.seen), "{}, not {allowed:?} of the other", followed.seen);
    followed.write("web.yaml", "");
    followed.until(&["other=10.96.1.249"]);
}

#[test]
fn of_duplicates_the_first_file_wins() {
    let mut followed = Followed::start(&[
        ("b.yaml", &service("one", "10.0.0.2")),
        ("a.yaml", &service("one", "10.0.0.1")),
    ]);
    followed.until(&["one=10.0.0.1"]);
    let (_, errors) = manifest::load(followed.directory.path(), true);
    let [ManifestError::Duplicate { file, first, .. }] = &errors[..] else { panic!("{errors:?}") };
    assert!(file.ends_with("b.yaml") && first.ends_with("a.yaml"), "{errors:?}");
    fs::remove_file(followed.path("a.yaml")).expect("removed");
    followed.until(&["one=10.0.0.2"]);
}

#[test]
fn a_directory_that_is_replaced_is_found_again() {
    let mut followed = Followed::start(&[("a.yaml", &service("one", "10.0.0.1"))]);
    followed.until(&["one=10.0.0.1"]);
    let root = followed.directory.path().to_owned();
    let away = root.with_extension("away");
    fs::rename(&root, &away).expect("renamed");
    fs::create_dir(&root).expect("created");
    fs::write(root.join("b.yaml"), service("two", "10.0.0.2")).expect("written");
    followed.until(&["two=10.0.0.2"]);
    // The new directory is followed, not just read.
    followed.write("b.yaml", &service("two", "10.0.0.3"));
    followed.until(&["two=10.0.0.3"]);
    fs::remove_dir_all(away).expect("removed");
}

/// Longer than a directory that is lost stays unlooked for.
const A_LOOK_LATER: Duration = Duration::from_millis(2500);

impl Followed {
    /// Whether nothing arrives for this long.
    fn is_quiet(&self, time: Duration) -> bool {
        self.changes.recv_timeout(time).is_err()
    }
}

// A directory that was moved away and made anew deleted everything until its files were there; so did
// one whose mount had not come yet.
#[test]
fn an_empty_directory_in_the_place_of_another_deletes_nothing() {
    let mut followed = Followed::start(&[
        ("a.yaml", &service("one", "10.0.0.1")),
        ("b.yaml", &service("two", "10.0.0.2")),
    ]);
    let root = followed.directory.path().to_owned();
    let away = root.with_extension("away");
    fs::rename(&root, &away).expect("renamed");
    assert!(followed.is_quiet(A_LOOK_LATER), "missing");
    fs::create_dir(&root).expect("created");
    assert!(followed.is_quiet(A_LOOK_LATER), "empty");
    // They arrive one after the other, as a copy's do.
    let begun = Instant::now();
    for (name, text) in
        [("a.yaml", service("one", "10.0.0.9")), ("b.yaml", service("two", "10.0.0.2"))]
    {
        fs::write(root.join(name), text).expect("written");
        std::thread::sleep(Duration::from_millis(300));
    }
    let took = begun.elapsed();
    followed.until(&["one=10.0.0.9", "two=10.0.0.2"]);
    // A copy that stood still for a second between two files looked like one that is complete.
    let complete = if took < Duration::from_millis(900) { 1 } else { 3 };
    assert!((1..=complete).contains(&followed.seen), "no moment without an object: {took:?}");
    // From here on it is the one that counts: what is removed from it is removed.
    fs::remove_file(root.join("a.yaml")).expect("removed");
    followed.until(&["two=10.0.0.2"]);
    fs::remove_file(root.join("b.yaml")).expect("removed");
    followed.until(&[]);
    fs::remove_dir_all(away).expect("removed");
}

// The link of a ConfigMap volume leads nowhere for a moment, or to a disk that fails.
#[test]
fn a_link_that_leads_nowhere_deletes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().to_owned();
    fs::create_dir(root.join("..1")).expect("a directory");
    fs::write(root.join("..1/a.yaml"), service("one", "10.0.0.1")).expect("written");
    symlink("..1", root.join("..data")).expect("linked");
    symlink("..data/a.yaml", root.join("a.yaml")).expect("linked");
    let mut followed = Followed::follow(directory);
    fs::remove_dir_all(root.join("..1")).expect("removed");
    followed.write("b.yaml", &service("two", "10.0.0.2"));
    followed.until(&["one=10.0.0.1", "two=10.0.0.2"]);
    assert_eq!(followed.seen, 1);
    fs::remove_file(root.join("a.yaml")).expect("removed");
    followed.until(&["two=10.0.0.2"]);
}

/// Something that happens in a directory all the time, until this is dropped.
struct Busy(Arc<std::sync::atomic::AtomicBool>);

impl Busy {
    fn start(directory: &Path) -> Busy {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (stopped, path) = (Arc::clone(&stop), directory.join("busy.txt"));
        std::thread::spawn(move || {
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                fs::write(&path, "busy").expect("written");
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Busy(stop)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn events_do_not_postpone_an_empty_file() {
    let mut followed = Followed::start(&[("a.yaml", &service("one", "10.0.0.1"))]);
    let _busy = Busy::start(followed.directory.path());
    followed.write("a.yaml", "");
    followed.until(&[]);
}

#[test]
fn events_of_a_lost_directory_do_not_postpone_the_next() {
    let mut followed = Followed::start(&[("a.yaml", &service("one", "10.0.0.1"))]);
    let root = followed.directory.path().to_owned();
    let away = root.with_extension("away");
    fs::rename(&root, &away).expect("renamed");
    let _busy = Busy::start(&away);
    fs::create_dir(&root).expect("created");
    fs::write(root.join("b.yaml"), service("two", "10.0.0.2")).expect("written");
    followed.until(&["two=10.0.0.2"]);
    // It is followed, not just read.
    followed.write("b.yaml", &service("two", "10.0.0.3"));
    followed.until(&["two=10.0.0.3"]);
}

// A directory is another one, too, when the link to it is swapped, of which no event tells.
#[test]
fn a_link_to_another_directory_is_noticed() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().to_owned();
    for (version, ip) in [("1", "10.0.0.1"), ("2", "10.0.0.2")] {
        fs::create_dir(root.join(version)).expect("a directory");
        fs::write(root.join(version).join("a.yaml"), service("one", ip)).expect("written");
    }
    symlink("1", root.join("current")).expect("linked");
    let (sender, changes) = mpsc::channel();
    let sink = Arc::new(Changes(Mutex::new(sender)));
    let watching = manifest::start(root.join("current"), true, sink).expect("started");
    for _ in Kind::ALL {
        changes.recv_timeout(DEADLINE).expect("an initial list");
    }
    symlink("2", root.join("next")).expect("linked");
    fs::rename(root.join("next"), root.join("current")).expect("renamed");
    let change = changes.recv_timeout(2 * DEADLINE).expect("the swap is noticed");
    let Change::Apply(Object::Service(service)) = change else { panic!("{change:?}") };
    assert_eq!(service.cluster_ips[0].to_string(), "10.0.0.2");
    watching.stop();
}

#[test]
fn nothing_is_delivered_after_a_stop() {
    let followed = Followed::start(&[("a.yaml", &service("one", "10.0.0.1"))]);
    let Followed { directory, watching, changes, .. } = followed;
    watching.stop();
    fs::write(directory.path().join("a.yaml"), service("one", "10.0.0.2")).expect("written");
    assert!(changes.recv().is_err(), "the sink is gone with the thread");
}
