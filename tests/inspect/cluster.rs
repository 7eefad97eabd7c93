//! A live cluster as the source of objects.

use kubeweir::testing::ApiServer;
use serde_json::Value;

use super::scene::{Scene, kubeweir};

#[test]
fn a_cluster_renders_as_its_manifests_do() {
    let server = ApiServer::start([127, 0, 0, 1].into()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for file in ["cluster.yaml", "services.yaml"] {
        let path = Scene::source().join(file);
        let text = std::fs::read_to_string(path).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        objects.iter().for_each(|object| server.put(object));
    }
    let kubeconfig = server.write_kubeconfig(directory.path()).unwrap().display().to_string();
    let manifests = Scene::source().display().to_string();
    let node = ["--node", "node", "--cluster-cidr", "10.244.0.0/16"];
    let render = |source: [&str; 2]| kubeweir(&[&["render"], &source[..], &node].concat());
    let (live, written) = (render(["--kubeconfig", &kubeconfig]), render(["-f", &manifests]));
    assert_eq!((live.code, written.code), (0, 0), "{}{}", live.stderr, written.stderr);
    assert_eq!(live.stdout, written.stdout);
    assert!(live.stdout.contains("shop/web:http"), "{}", live.stdout);
}
