// Package telemetry is what the program says about itself while it runs: log
// lines in the reference's shape, the names of their attributes, and
// OpenTelemetry traces.
//
// It owns no state of the process: loggers, tracers and propagators are values
// that main makes and hands down.
//
// How it fails: a log line that cannot be written is lost. Traces are never a
// reason for a command to fail or to wait: a dead collector costs spans, one
// warning, and at most ShutdownLimit at the end.
package telemetry
