//! Makes an index to look at and serves it: `cargo run -p viewer --example make_index -- DIR [FEATURES [PORT]] [--signed]`.

#[path = "../tests/support/story.rs"]
mod story;

use std::path::PathBuf;

use story::Story;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut flag = |name: &str| {
        let before = arguments.len();
        arguments.retain(|a| a != name);
        arguments.len() < before
    };
    let (signed, bare, no_serve) = (flag("--signed"), flag("--no-logits"), flag("--no-serve"));
    let dir: PathBuf = arguments
        .first()
        .ok_or("usage: make_index DIR [FEATURES [PORT]] [--signed] [--no-logits] [--no-serve]")?
        .into();
    let d_sae = arguments.get(1).map_or(Ok(4096), |n| n.parse())?;
    let story = Story {
        d_sae,
        contexts: 2000,
        length: 128,
        signed,
        logits: !bare,
    };
    story::write(&dir, &story)?;
    if !no_serve {
        let mut options = viewer::Options::default();
        if let Some(port) = arguments.get(2) {
            options.port = port.parse()?;
        }
        viewer::serve(vec![dir], options, |url| println!("{url}"))?;
    }
    Ok(())
}
