//! The program under test. With `soak` as its first word it is the harness instead: so the two are always as fresh
//! as each other.

fn main() -> std::process::ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some("soak") {
        return taskflow_tests::soak::main(words);
    }
    taskflow::main()
}
