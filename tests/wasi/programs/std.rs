//! Rust's standard library on the files below a folder: what it sees is printed, the same on every system.
use std::fs::{self, File, OpenOptions};
use std::io::{self, prelude::*, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

fn walk(top: &Path, depth: usize) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(top)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let kind = entry.file_type()?;
        let size = if kind.is_file() { entry.metadata()?.len() } else { 0 };
        println!("{:depth$}{:?} {} {}", "", entry.file_name(), kind.is_dir(), size);
        if kind.is_dir() {
            walk(&entry.path(), depth + 2)?;
        }
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let top = Path::new(&std::env::args().nth(1).expect("a folder")).join("rust");
    fs::create_dir_all(top.join("a/b/c"))?;
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(top.join("a/file"))?;
    writeln!(file, "first line\nsecond line")?;
    file.seek(SeekFrom::Start(6))?;
    let mut word = [0; 4];
    file.read_exact(&mut word)?;
    println!("{} at {}", String::from_utf8_lossy(&word), file.stream_position()?);
    file.set_len(100)?;
    file.sync_all()?;
    println!("{:?}", OpenOptions::new().write(true).create_new(true).open(top.join("a/file")).map_err(|e| e.kind()).err());
    let mut more = OpenOptions::new().append(true).open(top.join("a/file"))?;
    more.write_all(b"the end")?;
    println!("{}", fs::metadata(top.join("a/file"))?.len());
    println!("{}", fs::copy(top.join("a/file"), top.join("copy"))?);
    fs::hard_link(top.join("copy"), top.join("a/b/linked"))?;
    fs::rename(top.join("copy"), top.join("a/b/c/moved"))?;
    let lines = io::BufReader::new(File::open(top.join("a/b/linked"))?).split(b'\n').count();
    println!("{lines} lines");
    walk(&top, 0)?;
    println!("{:?}", fs::read_to_string(top.join("none")).map_err(|e| e.kind()).err());
    println!("{:?}", fs::remove_dir(top.join("a")).is_err());
    let age = SystemTime::now().duration_since(fs::metadata(top.join("a/file"))?.modified()?);
    println!("{}", age.map_or(true, |age| age < Duration::from_secs(3600)));
    let start = Instant::now();
    std::thread::sleep(Duration::from_millis(20));
    println!("{}", start.elapsed() >= Duration::from_millis(20));
    fs::remove_dir_all(top.join("a/b"))?;
    walk(&top, 0)?;
    std::process::exit(7)
}
