//! `/flagz` and `/statusz` (KEP-4828, KEP-4827): a text for people, or an object for programs.
//!
//! Place in the flow: words what [`super::Pages`] carries. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Statusz;
use super::accept::{DEPRECATED, PageForm, page_form};
use crate::http_server::text;

/// The component's name on these pages, whatever the program is called.
const COMPONENT: &str = "kube-proxy";

pub(super) fn flagz(flags: &BTreeMap<String, String>, headers: &HeaderMap) -> Response {
    match page_form(headers, "Flagz") {
        Some(PageForm::Text) => {
            let mut page = title("flagz");
            for (name, value) in flags {
                line(&mut page, name, value);
            }
            text(StatusCode::OK, page)
        }
        Some(form @ PageForm::Object { .. }) => object("Flagz", form, json!({ "flags": flags })),
        None => not_acceptable(),
    }
}

pub(super) fn statusz(
    status: &Statusz,
    now: Timestamp,
    paths: &[&str],
    headers: &HeaderMap,
) -> Response {
    let up = now.duration_since(status.started).as_secs().max(0);
    match page_form(headers, "Statusz") {
        Some(PageForm::Text) => {
            let mut page = title("statusz");
            let started = status.started.strftime("%a %b %e %H:%M:%S UTC %Y");
            line(&mut page, "Started", &started.to_string());
            line(&mut page, "Up", &uptime(up));
            line(&mut page, "Go version", &status.compiler_version);
            line(&mut page, "Binary version", &status.binary_version);
            line(&mut page, "Emulation version", &status.emulation_version);
            line(&mut page, "Paths", &paths.join(" "));
            text(StatusCode::OK, page)
        }
        Some(form @ PageForm::Object { .. }) => object(
            "Statusz",
            form,
            json!({
                "startTime": whole_second(status.started),
                "uptimeSeconds": up,
                "goVersion": status.compiler_version,
                "binaryVersion": status.binary_version,
                "emulationVersion": status.emulation_version,
                "paths": paths,
            }),
        ),
        None => not_acceptable(),
    }
}

/// An empty line, the title, the warning (section 9.1).
fn title(page: &str) -> String {
    format!(
        "\n{COMPONENT} {page}\nWarning: this page is for people and may change its form at any \
         time; programs ask for the object instead.\n\n"
    )
}

fn line(page: &mut String, name: &str, value: &str) {
    writeln!(page, "{name}: {value}").expect("a String takes any text");
}

fn object(kind: &str, form: PageForm, mut fields: Value) -> Response {
    let PageForm::Object { version, yaml } = form else { return not_acceptable() };
    fields["kind"] = json!(kind);
    fields["apiVersion"] = json!(format!("config.k8s.io/{version}"));
    fields["metadata"] = json!({ "name": COMPONENT });
    let (content_type, body) = match yaml {
        true => ("application/yaml", serde_saphyr::to_string(&fields).expect("it is plain data")),
        false => ("application/json", fields.to_string()),
    };
    let mut response = ([(header::CONTENT_TYPE, content_type)], body).into_response();
    if version == DEPRECATED {
        let warning = "299 - \"this version of the page is deprecated; ask for a newer one\"";
        response.headers_mut().insert(header::WARNING, HeaderValue::from_static(warning));
    }
    response
}

fn not_acceptable() -> Response {
    text(StatusCode::NOT_ACCEPTABLE, "neither text nor a known version of the object is accepted\n")
}

/// Kubernetes' times have whole seconds.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).expect("a time's own seconds are in range")
}

/// `26 hr 03 min 00 sec`.
fn uptime(seconds: i64) -> String {
    format!("{} hr {:02} min {:02} sec", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
