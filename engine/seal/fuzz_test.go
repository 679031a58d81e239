package seal

import (
	"bytes"
	"errors"
	"testing"
)

// fuzzOpen holds for any input: no panic, and an error that is ErrCorrupt or
// ErrWrongKey; what is taken for whole is what was sealed.
func fuzzOpen(f *testing.F, name string) {
	var s Sealer
	for _, m := range methods(f) {
		if m.name == name {
			s = m.sealer
		}
	}
	plains := map[string]bool{"": true}
	for _, n := range []int{1, 300, 8192, 9000, 66000} {
		data := noise(n)
		plains[string(data)] = true
		object := sealed(f, s, data, n)
		f.Add(object)
		f.Add(object[:len(object)-1])
		f.Add(object[:len(object)/2])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, object []byte) {
		got, err := opened(s, bytes.NewReader(object))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrWrongKey) {
				t.Fatalf("%v is neither ErrCorrupt nor ErrWrongKey", err)
			}
			return
		}
		if !plains[string(got)] {
			t.Fatalf("%d bytes that nobody sealed are taken for whole", len(got))
		}
	})
}

func FuzzOpenOpenPGP(f *testing.F) { fuzzOpen(f, "openpgp") }

func FuzzOpenLibsodium(f *testing.F) { fuzzOpen(f, "libsodium") }

func FuzzOpenAWSKMS(f *testing.F) { fuzzOpen(f, "awskms") }

func FuzzOpenYandexKMS(f *testing.F) { fuzzOpen(f, "yandexkms") }

func FuzzOpenEnvelope(f *testing.F) { fuzzOpen(f, "envelope") }

// FuzzReadRing holds that no key text makes the parser panic, and that a ring
// is never empty.
func FuzzReadRing(f *testing.F) {
	f.Add(string(testdata(f, "pgp-private.asc")))
	f.Add(string(testdata(f, "pgp-public.asc")))
	f.Fuzz(func(t *testing.T, text string) {
		ring, err := readRing(text)
		if err == nil && len(ring) == 0 {
			t.Fatal("an empty ring without an error")
		}
		if err == nil {
			_, _ = NewOpenPGP(OpenPGPOptions{Armor: text})
		}
	})
}
