//! bazooka-static: serves the files of a folder on $PORT. It ships in the slugs of static apps.
//!
//! Names that begin with a dot are not served, except `.well-known`; nor are the Procfile, this program itself, and what npm
//! reads and installs.

use std::{net::Ipv4Addr, path::PathBuf, process::ExitCode};

use axum::{
    Router,
    extract::Request,
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use percent_encoding::percent_decode_str;
use tower_http::services::ServeDir;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from);
    let port = std::env::var("PORT").ok().and_then(|port| port.parse::<u16>().ok());
    let Some(port) = port else {
        eprintln!("bazooka-static: PORT must name a port");
        return ExitCode::FAILURE;
    };
    match serve(folder, port).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bazooka-static: port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(folder: PathBuf, port: u16) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut end = signal(SignalKind::terminate())?;
    let not_found = folder.join("404.html");
    let files = ServeDir::new(folder).fallback(page_not_found(not_found));
    let routes = Router::new().fallback_service(files).layer(middleware::from_fn(hide));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move {
            end.recv().await;
        })
        .await
}

/// Answers requests for missing files, with the folder's own 404.html if it has one.
fn page_not_found(page: PathBuf) -> Router {
    Router::new().fallback(move || async move {
        match tokio::fs::read(&page).await {
            Ok(page) => {
                (StatusCode::NOT_FOUND, [("content-type", "text/html; charset=utf-8")], page).into_response()
            }
            Err(_) => (StatusCode::NOT_FOUND, "not found\n").into_response(),
        }
    })
}

async fn hide(request: Request, next: Next) -> Response {
    // Decoded like in ServeDir, so that a hidden name has no second spelling.
    let path = percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let hidden = parts.iter().any(|part| part.starts_with('.') && *part != ".well-known")
        || matches!(
            parts[..],
            ["Procfile" | "package.json" | "package-lock.json" | "npm-shrinkwrap.json"]
                | ["node_modules", ..]
                | ["bin", "bazooka-static"]
        );
    if hidden { (StatusCode::NOT_FOUND, "not found\n").into_response() } else { next.run(request).await }
}
