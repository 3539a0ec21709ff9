//! A chart that is large.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A copy of the chart that renders 2 MB more.
pub fn enlarged(chart: &Path, home: &Path) -> PathBuf {
    let copy = home.join("large");
    let status = Command::new("cp").arg("-r").arg(chart).arg(&copy).status().expect("cp is a program");
    assert!(status.success());
    let template = "{{- range $number := until 200 }}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: large-{{ $number }}\ndata:\n  \
                    text: |\n{{- range until 100 }}\n    a line of text that is a hundred characters long, such as people put into their \
                    ConfigMaps: {{ . }}\n{{- end }}\n{{- end }}\n";
    std::fs::write(copy.join("templates/large.yaml"), template).expect("written");
    copy
}
