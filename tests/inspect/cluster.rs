//! A live cluster as the source of objects.

use kubeweir::testing::ApiServer;
use serde_json::Value;

use super::scene::{Scene, kubeweir, unprivileged};

#[test]
fn a_cluster_renders_as_its_manifests_do() {
    let server = ApiServer::start([127, 0, 0, 1].into()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for file in ["cluster.yaml", "services.yaml"] {
        let path = Scene::source().join(file);
        let text = std::fs::read_to_string(path).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let served = objects.iter().filter(|object| object["kind"] != "Pod");
        served.for_each(|object| server.put(object));
    }
    let kubeconfig = server.write_kubeconfig(directory.path()).unwrap().display().to_string();
    let manifests = Scene::source().display().to_string();
    let mut renders = Vec::new();
    // Of any node, wherever this runs, and without a privilege.
    for node in ["node", "elsewhere"] {
        let node = ["--node", node, "--cluster-cidr", "10.244.0.0/16"];
        let render = |source: [&str; 2]| unprivileged(&[&["render"], &source[..], &node].concat());
        let (live, written) = (render(["--kubeconfig", &kubeconfig]), render(["-f", &manifests]));
        assert_eq!((live.code, written.code), (0, 0), "{}{}", live.stderr, written.stderr);
        assert_eq!(live.stdout, written.stdout);
        assert!(live.stdout.contains("shop/web:http"), "{}", live.stdout);
        renders.push(live.stdout);
    }
    // shop/gate has policy Local and its pod elsewhere.
    let dropped = "198.51.100.12 . tcp . 443 comment \"shop/gate:https\"";
    let within = |render: &str| {
        let set = render.split("set dropped-services {").nth(1).expect("the set is there");
        set.split("\n\t}").next().is_some_and(|set| set.contains(dropped))
    };
    assert_eq!(renders.iter().map(|render| within(render)).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn a_pod_is_looked_up_in_the_cluster() {
    use axum::routing::get;

    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0", "namespace": "shop"},
        "status": {"podIPs": [{"ip": "127.0.0.2"}]},
    });
    let path = "/api/v1/namespaces/shop/pods/web-0";
    let router = axum::Router::new().route(path, get(move || async move { pod.to_string() }));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move { axum::serve(listener, router).await });
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let text = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
    });
    std::fs::write(&kubeconfig, text.to_string()).unwrap();
    let kubeconfig = kubeconfig.display().to_string();
    let explain = |pod| kubeweir(&["explain", pod, "10.96.0.1:80", "--kubeconfig", &kubeconfig]);
    let found = explain("shop/web-0");
    assert!(found.stdout.starts_with("127.0.0.2 -> 10.96.0.1:80/tcp"), "{found:?}");
    let missing = explain("shop/web-1");
    assert_eq!(missing.code, 2);
    assert!(missing.stderr.contains("\"shop/web-1\": there is no such pod"), "{}", missing.stderr);
}
