// Package observe is what lets a person look into a running or finished
// command: metrics to statsd, profiles, and the debug web server, in the forms
// WAL-G's users have dashboards for.
//
// None of it may harm the command. A statsd that is not there, a name that does
// not resolve, a debug address that another process holds: each is an error for
// the caller to log, and costs a fraction of a second at the most.
package observe
