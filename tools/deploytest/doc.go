// Package deploytest holds what is in deploy, and compose.yaml, against the
// program they deploy: every setting they name is one, every command and flag
// exists, units are valid for systemd, the chart renders to what it promises,
// the compose file is one. A renamed setting or flag fails here and not at an
// operator's site. It has no use outside of its own tests.
//
// The tests need the go command: they build walherd, and the module check
// below, which is kept in the user's cache directory. systemd-analyze and helm
// are used if they are installed.
package deploytest
