fn main() -> std::process::ExitCode {
    taskflow::main()
}
