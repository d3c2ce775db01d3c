//! The owner's pages, of this agent and of all his rigs: pages, scripts and a style that are part of the binary.
//!
//! The browser is told to load nothing from elsewhere and to show the page in nobody's frame. The token is in none of them: the
//! page gets it for a ticket (`ticket.rs`), which comes in the address' fragment, which browsers send to nobody. Must never answer with anything that a stranger said.

use axum::http::{HeaderName, header};
use axum::response::IntoResponse;

/// Everything from this agent, and nothing that is written into the page's own text: no script, no style, no form, no frame.
const ONLY_FROM_HERE: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) async fn page() -> impl IntoResponse {
    file("text/html; charset=utf-8", include_str!("../dashboard/index.html"))
}

pub(super) async fn script() -> impl IntoResponse {
    let script = concat!(
        include_str!("../dashboard/ask.js"),
        include_str!("../dashboard/draw.js"),
        include_str!("../dashboard/jobs.js"),
        include_str!("../dashboard/app.js"),
    );
    file("text/javascript; charset=utf-8", script)
}

pub(super) async fn fleet_page() -> impl IntoResponse {
    file("text/html; charset=utf-8", include_str!("../dashboard/fleet.html"))
}

pub(super) async fn fleet_script() -> impl IntoResponse {
    let script = concat!(
        include_str!("../dashboard/ask.js"),
        include_str!("../dashboard/draw.js"),
        include_str!("../dashboard/fleet.js"),
    );
    file("text/javascript; charset=utf-8", script)
}

pub(super) async fn style() -> impl IntoResponse {
    file("text/css; charset=utf-8", include_str!("../dashboard/style.css"))
}

/// Never from a cache without asking: after an update the page has to be the new agent's.
fn file(content_type: &'static str, text: &'static str) -> ([(HeaderName, &'static str); 4], &'static str) {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, ONLY_FROM_HERE),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text)
}
