//! Who uses whom: the table in `src/lib.rs` goes from the ground up, and a module uses only those above it in the table.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use regex::Regex;

use crate::support::driver::root;

/// A module by its path below the crate: `["registry", "client"]`.
type Module = Vec<String>;

/// The modules of `src` with their code, without tests and comments.
fn modules() -> BTreeMap<Module, String> {
    let src = root().join("src");
    let (mut waiting, mut modules) = (vec![src.clone()], BTreeMap::new());
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(std::fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()));
            continue;
        }
        let is_code = |name: &str| !["lib.rs", "main.rs", "tests.rs", "properties.rs"].contains(&name) && name.ends_with(".rs");
        if is_code(&path.file_name().expect("a file").to_string_lossy()) {
            modules.insert(module(&src, &path), code(&std::fs::read_to_string(&path).expect("a file")));
        }
    }
    modules
}

fn module(src: &Path, path: &Path) -> Module {
    let path: PathBuf = path.strip_prefix(src).expect("below src").with_extension("");
    path.iter().map(|part| part.to_string_lossy().into_owned()).collect()
}

fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().expect("a part");
    Regex::new(r"//[^\n]*").expect("a constant").replace_all(text, "").into_owned()
}

/// The modules that each names by a path from `crate` or `super`, or as its own child.
fn uses(modules: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let path = Regex::new(r"\b(crate|super)((?:::\w+)*)(?:::\{([^;]*)\})?").expect("a constant");
    let inner = Regex::new(r"(?:^|[{,\s])(\w+(?:::\w+)*)").expect("a constant");
    let longest =
        |path: &[String]| (1..=path.len()).rev().map(|end| path[..end].to_vec()).find(|path| modules.contains_key(path));
    let mut uses = BTreeMap::new();
    for (module, code) in modules {
        let mut used = BTreeSet::new();
        for part in path.captures_iter(code) {
            let mut base: Module = if &part[1] == "crate" { Vec::new() } else { module[..module.len() - 1].to_vec() };
            for word in part[2].split("::").filter(|word| !word.is_empty()) {
                if word == "super" { drop(base.pop()) } else { base.push(word.to_owned()) }
            }
            let names = part.get(3).map_or("", |names| names.as_str());
            used.extend(longest(&base));
            for name in inner.captures_iter(names) {
                let words = name[1].split("::").map(str::to_owned);
                used.extend(longest(&base.iter().cloned().chain(words).collect::<Module>()));
            }
        }
        used.remove(module);
        uses.insert(module.clone(), used);
    }
    uses
}

/// The modules of the tables in `src/lib.rs`, in their order.
fn table() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("src/lib.rs")).expect("a file");
    let row = Regex::new(r"(?m)^//! \| (\[`.*?) \|").expect("a constant");
    let name = Regex::new(r"\[`(\w+)`\]").expect("a constant");
    row.captures_iter(&text)
        .flat_map(|row| name.captures_iter(&row[1]).map(|name| name[1].to_owned()).collect::<Vec<_>>())
        .collect()
}

#[test]
fn a_module_uses_only_modules_above_it_in_the_table() {
    let (modules, table) = (modules(), table());
    let all: BTreeSet<&str> = modules.keys().map(|module| module[0].as_str()).collect();
    assert_eq!(table.iter().map(String::as_str).collect::<BTreeSet<_>>(), all, "the table has every module once");
    let place = |module: &Module| table.iter().position(|name| *name == module[0]).expect("it is in the table");
    let mut wrong = Vec::new();
    for (module, used) in uses(&modules) {
        wrong.extend(
            used.iter()
                .filter(|used| place(used) > place(&module))
                .map(|used| format!("{} uses {}", module.join("::"), used.join("::"))),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A module and those below it are one subject; two others that import each other are one that was cut in the wrong place.
#[test]
fn no_two_files_import_each_other() {
    let uses = uses(&modules());
    let mut circles = Vec::new();
    for (module, used) in &uses {
        let is_related = |other: &Module| other.starts_with(module) || module.starts_with(other);
        let back = used.iter().filter(|other| module < *other && !is_related(other) && uses[*other].contains(module));
        circles.extend(back.map(|other| format!("{} and {}", module.join("::"), other.join("::"))));
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn a_wrong_direction_is_found() {
    let modules = BTreeMap::from([
        (vec!["a".to_owned()], "use crate::{b::c::D, x};\nmod child;".to_owned()),
        (vec!["b".to_owned()], String::new()),
        (vec!["b".to_owned(), "c".to_owned()], "fn f() { super::super::a::g() }".to_owned()),
        (vec!["x".to_owned()], code("// use crate::a;\n#[cfg(test)]\nmod tests { use crate::b; }")),
    ]);
    let uses = uses(&modules);
    let names = |module: &[&str]| {
        let module: Module = module.iter().map(|word| (*word).to_owned()).collect();
        uses[&module].iter().map(|used| used.join("::")).collect::<Vec<_>>()
    };
    assert_eq!(names(&["a"]), ["b::c", "x"]);
    assert_eq!(names(&["b", "c"]), ["a"]);
    assert!(names(&["x"]).is_empty());
}
