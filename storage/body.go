package storage

import "io"

// Describer is what a body that Open returned may also be: it tells which
// object the bytes belong to. A store answers it from what it learned by
// opening, without another request. false is: not known.
//
// It is how a body that broke is continued without mixing two versions of an
// object: the continuation must tell the same size and time.
type Describer interface {
	Info() (Info, bool)
}

// InfoOf asks a body for its object; false when the body cannot tell.
func InfoOf(body io.Reader) (Info, bool) {
	if d, ok := body.(Describer); ok {
		return d.Info()
	}
	return Info{}, false
}
