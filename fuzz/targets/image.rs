//! Image references, and the other words of a request that end up in arguments.
#![no_main]

use kiln::domain::{
    project::ProjectName,
    spec::{Digest, ImageRef},
    term::{ImageTerm, LabelTerm},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(image) = text.parse::<ImageRef>() {
        let shown = image.to_string();
        assert_eq!(
            shown.parse::<ImageRef>().as_ref(),
            Ok(&image),
            "what is shown is read as the same"
        );
        assert!(
            shown
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"-".contains(&shown.as_bytes()[0]))
        );
        assert!(![image.registry(), image.repository(), image.tag()].contains(&""));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.as_str(), text);
    }
    if let Ok(project) = text.parse::<ProjectName>() {
        assert_eq!(project.as_str(), text);
    }
    let _ = (text.parse::<ImageTerm>(), text.parse::<LabelTerm>());
});
