//! Objects that change while packets flow.

use std::net::{IpAddr, SocketAddr};

use kubeweir::model::Protocol;
use kubeweir::testing::lab::{Dial, Outcome, Place, SILENCE};

use super::scene::Scene;

/// Shows the changes; how many went wrong.
pub fn show(scene: &Scene) -> anyhow::Result<usize> {
    let payment = SocketAddr::new(IpAddr::from([10, 107, 99, 82]), 50051);
    scene.edit("payment.yaml", "10.244.0.12", "10.244.1.12")?;
    let took = scene.wait_until(Place::Pod(0), payment, "remote-2")?;
    println!("payment.yaml: endpoint 10.244.0.12 -> 10.244.1.12");
    println!("  {payment} from pod-0: pod-2 before, remote-2 {took:.1?} after the file changed");

    let external = |last| SocketAddr::new(IpAddr::from([192, 0, 2, last]), 5432);
    scene.edit("postgres.yaml", "192.0.2.200", "192.0.2.201")?;
    let took = scene.wait_until(Place::Outside, external(201), "pod-2")?;
    println!("postgres.yaml: external IP 192.0.2.200 -> 192.0.2.201");
    println!("  {} from outside: answered {took:.1?} after the file changed", external(201));
    let old = Dial::new(Protocol::Tcp, external(200)).timeout(SILENCE);
    let old = scene.lab.dial(Place::Outside, old, 1).remove(0);
    println!(
        "  {} from outside: {}",
        external(200),
        match &old {
            Outcome::Answered(answer) => format!("still answered by {}", answer.server),
            _ => "served no more".to_owned(),
        }
    );
    Ok(usize::from(old.answer().is_some()))
}
