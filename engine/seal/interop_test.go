package seal

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"golang.org/x/crypto/chacha20"
)

// need fails where a tool is missing: these tests are the proof that others
// can read our objects, and a skipped proof looks like one.
func need(t *testing.T, tool, install string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Fatalf("%s is needed to prove that others read our objects: apt-get install %s (make deps)", tool, install)
	}
	return path
}

// run feeds a command and gives its output.
func run(stdin []byte, name string, args ...string) ([]byte, error) {
	c := exec.Command(name, args...)
	c.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("%s: %w: %s", filepath.Base(name), err, errs.Bytes())
	}
	return out.Bytes(), nil
}

// realSodium compiles a helper on libsodium; it seals and opens.
func realSodium(t *testing.T) func(stdin []byte, mode string) ([]byte, error) {
	t.Helper()
	gcc := need(t, "gcc", "gcc libsodium-dev")
	helper := filepath.Join(t.TempDir(), "secretstream")
	if out, err := exec.Command(gcc, "-O2", "-o", helper, filepath.Join("testdata", "secretstream.c"), "-lsodium").CombinedOutput(); err != nil {
		t.Fatalf("compile against libsodium (apt-get install libsodium-dev, make deps): %v\n%s", err, out)
	}
	return func(stdin []byte, mode string) ([]byte, error) {
		return run(stdin, helper, mode, hex.EncodeToString([]byte(fixtureKey)))
	}
}

func fixtureSodium(t *testing.T) Sealer {
	t.Helper()
	s, err := NewLibsodium(LibsodiumOptions{Key: hex.EncodeToString([]byte(fixtureKey)), Transform: TransformHex})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRealLibsodium(t *testing.T) {
	t.Parallel()
	real, s := realSodium(t), fixtureSodium(t)
	for _, n := range append(borders, 5, 8, 24, 40, 1696, 100000, 100003) {
		data := noise(n)
		ours := sealed(t, s, data, 5000)
		if got, err := real(ours, "open"); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("libsodium reads %d of our %d bytes: %v", len(got), n, err)
		}
		theirs, err := real(data, "seal")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := opened(s, bytes.NewReader(theirs)); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("we read %d of libsodium's %d bytes: %v", len(got), n, err)
		}
		if len(ours) != len(theirs) {
			t.Fatalf("%d bytes make %d here and %d there", n, len(ours), len(theirs))
		}
	}
	for n, want := range map[int]int{100000: 100245, 8192: 8250, 16384: 16459} {
		if got := len(sealed(t, s, noise(n), n)); got != want {
			t.Fatalf("%d bytes make %d, WAL-G's %d", n, got, want)
		}
	}
}

// Streams of the same library that WAL-G neither writes nor reads.
func TestOtherSecretstreamsAreDamaged(t *testing.T) {
	t.Parallel()
	real, s := realSodium(t), fixtureSodium(t)
	for _, n := range []int{8192, 16384} {
		full, err := real(noise(n), "sealfull")
		if err != nil {
			t.Fatal(err)
		}
		wantDamaged(t, s, full, "a full final chunk")
	}
	tagged, err := real(noise(20000), "sealtag")
	if err != nil {
		t.Fatal(err)
	}
	wantDamaged(t, s, tagged, "a chunk with another tag")
}

// The counter wraps after 2^32 chunks, and both then change the key.
func TestSecretstreamRekeysWhenTheCounterIsSpent(t *testing.T) {
	t.Parallel()
	real, s := realSodium(t), fixtureSodium(t).(*libsodium)
	data := noise(10*plainChunk + 77)
	object, err := real(data, "sealcount")
	if err != nil {
		t.Fatal(err)
	}
	stream, err := newSecretstream(&s.key, object[:streamHeaderSize])
	if err != nil {
		t.Fatal(err)
	}
	copy(stream.nonce[:4], "\xfe\xff\xff\xff")
	var got []byte
	for p := object[streamHeaderSize:]; len(p) > 0; p = p[min(len(p), sealedChunk):] {
		buf := append(make([]byte, streamBlock-1), p[:min(len(p), sealedChunk)]...)
		plain, _, err := stream.open(buf)
		if err != nil {
			t.Fatalf("after %d bytes: %v", len(got), err)
		}
		got = append(got, plain...)
	}
	if !bytes.Equal(got, data) {
		t.Fatal("other data")
	}
}

// Every length of a chunk, both ways of computing it, against each other: the
// fast one on an aligned length is the slow one's result.
func TestSecretstreamWaysAgree(t *testing.T) {
	t.Parallel()
	var key [32]byte
	copy(key[:], fixtureKey)
	for n := 0; n <= 260; n++ {
		a, err := newSecretstream(&key, make([]byte, streamHeaderSize))
		if err != nil {
			t.Fatal(err)
		}
		b := *a
		c, err := chacha20.NewUnauthenticatedCipher(a.key[:], a.nonce[:])
		if err != nil {
			t.Fatal(err)
		}
		auth := authKey(c)
		buf := append(make([]byte, streamBlock, streamBlock+n+16), noise(n)...)
		slow := bytes.Clone(buf)
		c.XORKeyStream(slow, slow)
		mac := authenticate(auth, slow)
		chunk, err := a.seal(buf, tagMessage)
		if err != nil {
			t.Fatal(err)
		}
		if want := append(append([]byte{slow[0]}, slow[streamBlock:]...), mac[:]...); !bytes.Equal(chunk[streamBlock-1:], want) {
			t.Fatalf("%d bytes: the two ways differ", n)
		}
		plain, tag, err := b.open(append(make([]byte, streamBlock-1), chunk[streamBlock-1:]...))
		if err != nil || tag != tagMessage || !bytes.Equal(plain, noise(n)) {
			t.Fatalf("%d bytes: tag %d, %v", n, tag, err)
		}
		if a.key != b.key || a.nonce != b.nonce {
			t.Fatalf("%d bytes: the states differ", n)
		}
	}
}

// gpgHome is a key ring of its own with the keys given, and gpg upon it.
func gpgHome(t *testing.T, keys ...[]byte) func(stdin []byte, args ...string) ([]byte, error) {
	t.Helper()
	gpg := need(t, "gpg", "gnupg")
	// The agent's socket lies in it, whose path may not be long.
	home, err := os.MkdirTemp("", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	// The default makes a key cost a second to unlock.
	if err := os.WriteFile(filepath.Join(home, "gpg-agent.conf"), []byte("s2k-count 65536\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", home, "--kill", "all").Run()
		os.RemoveAll(home)
	})
	g := func(stdin []byte, args ...string) ([]byte, error) {
		return run(stdin, gpg, append([]string{"--homedir", home, "--batch", "--yes", "--quiet", "--no-tty", "--trust-model", "always", "--pinentry-mode", "loopback"}, args...)...)
	}
	for _, k := range keys {
		if _, err := g(k, "--import"); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func newPGP(t failer, armor, passphrase string) Sealer {
	t.Helper()
	s, err := NewOpenPGP(OpenPGPOptions{Armor: armor, Passphrase: passphrase})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRealGPG(t *testing.T) {
	t.Parallel()
	private := testdata(t, "pgp-private.asc")
	gpg := gpgHome(t, private)
	s, public := newPGP(t, string(private), ""), newPGP(t, string(testdata(t, "pgp-public.asc")), "")
	for _, n := range []int{0, 1, 191, 192, 511, 513, 8383, 8384, 65536, 65530, 200000, 1 << 20} {
		data := noise(n)
		for _, from := range []Sealer{s, public} {
			if got, err := gpg(sealed(t, from, data, 9999), "--decrypt"); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("gpg reads %d of our %d bytes: %v", len(got), n, err)
			}
		}
		for _, args := range [][]string{{"--compress-algo", "none"}, {"--compress-algo", "zlib"}, {"--cipher-algo", "AES256", "--force-mdc"}} {
			theirs, err := gpg(data, append(args, "--recipient", "fixture@example.invalid", "--encrypt")...)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := opened(s, bytes.NewReader(theirs)); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("we read %d of gpg's %d bytes (%v): %v", len(got), n, args, err)
			}
			wantDamaged(t, s, theirs[:len(theirs)-1], "gpg's message without its last byte")
		}
	}
}

// The packets that WAL-G writes, as gpg sees them.
func TestOpenPGPLayout(t *testing.T) {
	t.Parallel()
	private := testdata(t, "pgp-private.asc")
	gpg := gpgHome(t, private)
	object := sealed(t, newPGP(t, string(private), ""), noise(3000), 100)
	// One of 256 encrypted numbers begins with a byte of zeros, which is not written,
	// so the packet's length is not always 4c.
	if !bytes.HasPrefix(object, []byte("\xc1\xc0")) || !bytes.HasPrefix(object[3:], []byte("\x03\xc2\x7e\x20\xae\xeb\x82\x7a\x1a\x01")) {
		t.Fatalf("it begins with % x", object[:16])
	}
	listing, err := gpg(object, "--list-packets", "--show-session-key")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{":pubkey enc packet: version 3, algo 1", "tag=18", "mdc_method: 2", `mode b (62), created 0, name=""`} {
		if !strings.Contains(string(listing), want) {
			t.Errorf("no %q in\n%s", want, listing)
		}
	}
	for _, bad := range []string{"compressed", "signature"} {
		if strings.Contains(string(listing), bad) {
			t.Errorf("%q in\n%s", bad, listing)
		}
	}
}

// A locked key of gpg's, with subkey, two recipients, and keys kept elsewhere.
func TestKeysOfGPG(t *testing.T) {
	t.Parallel()
	gpg := gpgHome(t)
	const pass = "correct horse"
	for _, user := range []string{"a@example.invalid", "b@example.invalid"} {
		if _, err := gpg(nil, "--passphrase", pass, "--quick-generate-key", user, "future-default", "default", "never"); err != nil {
			t.Fatal(err)
		}
	}
	export := func(args ...string) string {
		t.Helper()
		out, err := gpg(nil, append([]string{"--passphrase", pass, "--armor"}, args...)...)
		if err != nil || len(out) == 0 {
			t.Fatal(len(out), err)
		}
		return string(out)
	}
	a, b := export("--export-secret-keys", "a@example.invalid"), export("--export-secret-keys", "b@example.invalid")
	publicBoth := export("--export")
	data := noise(100000)

	// All keys of a ring, in one block or several, are recipients.
	for name, ring := range map[string]string{"one block": publicBoth, "two blocks": export("--export", "a@example.invalid") + "\n" + export("--export", "b@example.invalid"), "mixed": a + b + publicBoth} {
		object := sealed(t, newPGP(t, ring, pass), data, 70000)
		for _, key := range []string{a, b, export("--export-secret-subkeys", "b@example.invalid")} {
			if got, err := opened(newPGP(t, key, pass), bytes.NewReader(object)); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%s: %d bytes, %v", name, len(got), err)
			}
		}
		if got, err := gpg(object, "--passphrase", pass, "--decrypt"); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%s: gpg reads %d bytes, %v", name, len(got), err)
		}
	}

	// The other key does not open, and says whose object it is not.
	object := sealed(t, newPGP(t, a, pass), data, 1000)
	if _, err := opened(newPGP(t, b, pass), bytes.NewReader(object)); !errors.Is(err, ErrWrongKey) {
		t.Fatal(err)
	}

	// A public key seals alone.
	public := newPGP(t, publicBoth, "")
	if err := public.CanSeal(); err != nil {
		t.Fatal(err)
	}
	_, err := public.Open(context.Background(), bytes.NewReader(object))
	if !errors.Is(err, ErrNoPrivateKey) || !errors.Is(public.CanOpen(), ErrNoPrivateKey) {
		t.Fatal(err)
	}

	// Locked keys are errors of the constructor.
	for _, o := range []OpenPGPOptions{{Armor: a}, {Armor: a, Passphrase: "wrong secret"}, {Armor: a + b}} {
		_, err := NewOpenPGP(o)
		if err == nil || !strings.Contains(err.Error(), "WALG_PGP_KEY_PASSPHRASE") || o.Passphrase != "" && strings.Contains(err.Error(), o.Passphrase) {
			t.Fatalf("passphrase %q: %v", o.Passphrase, err)
		}
	}

	// A message protected by a passphrase, and one that gpg signed, is none
	// of ours.
	symmetric, err := gpg(data, "--passphrase", pass, "--symmetric")
	if err != nil {
		t.Fatal(err)
	}
	signed, err := gpg(data, "--passphrase", pass, "--recipient", "a@example.invalid", "--sign", "--encrypt")
	if err != nil {
		t.Fatal(err)
	}
	only, err := gpg(data, "--passphrase", pass, "--local-user", "a@example.invalid", "--sign")
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string][]byte{"symmetric": symmetric, "signed": signed, "only signed": only} {
		wantDamaged(t, newPGP(t, a, pass), m, name)
	}
}

// A key past its date reads what it sealed before, and seals no more.
func TestExpiredKeyStillOpens(t *testing.T) {
	t.Parallel()
	gpg := gpgHome(t)
	if _, err := gpg(nil, "--faked-system-time", "20200101T000000", "--passphrase", "", "--quick-generate-key", "old@example.invalid", "future-default", "default", "1y"); err != nil {
		t.Fatal(err)
	}
	key, err := gpg(nil, "--armor", "--export-secret-keys")
	if err != nil {
		t.Fatal(err)
	}
	object, err := gpg([]byte("data"), "--faked-system-time", "20200201T000000", "--recipient", "old@example.invalid", "--encrypt")
	if err != nil {
		t.Fatal(err)
	}
	s := newPGP(t, string(key), "")
	if got, err := opened(s, bytes.NewReader(object)); err != nil || string(got) != "data" {
		t.Fatalf("%q, %v", got, err)
	}
	var out bytes.Buffer
	if _, err := s.Seal(context.Background(), &out); err == nil || s.CanSeal() == nil || out.Len() != 0 {
		t.Fatalf("%v, %d bytes written", err, out.Len())
	}
	public, err := gpg(nil, "--armor", "--export")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewOpenPGP(OpenPGPOptions{Armor: string(public)}); err == nil {
		t.Fatal("a key that neither seals nor opens was taken")
	}
}

// The newer kind of OpenPGP encryption (AEAD), which nothing here writes, is
// read with the same promises.
func TestNewerOpenPGPIsProtected(t *testing.T) {
	t.Parallel()
	ring, err := readRing(string(testdata(t, "pgp-private.asc")))
	if err != nil {
		t.Fatal(err)
	}
	self, _ := ring[0].PrimarySelfSignature()
	self.SEIPDv2 = true
	var out bytes.Buffer
	w, err := openpgp.Encrypt(&out, ring, nil, nil, &packet.Config{AEADConfig: &packet.AEADConfig{}})
	if err != nil {
		t.Fatal(err)
	}
	data := noise(2000)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s := newPGP(t, string(testdata(t, "pgp-private.asc")), "")
	if got, err := opened(s, bytes.NewReader(out.Bytes())); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	for cut := 0; cut < out.Len(); cut += 3 {
		wantDamaged(t, s, out.Bytes()[:cut], fmt.Sprintf("%d of %d bytes", cut, out.Len()))
	}
	wantDamaged(t, s, append(bytes.Clone(out.Bytes()), 0), "one more byte")
	for i := 15; i < out.Len(); i += 7 {
		altered := bytes.Clone(out.Bytes())
		altered[i] ^= 4
		wantDamaged(t, s, altered, fmt.Sprintf("byte %d", i))
	}
}

// Objects that WAL-G wrote.
func TestFixtures(t *testing.T) {
	t.Parallel()
	gpg := gpgHome(t, testdata(t, "pgp-private.asc"))
	sodium := realSodium(t)
	pgp := newPGP(t, string(testdata(t, "pgp-private.asc")), "")
	for name, c := range map[string]struct {
		s     Sealer
		other func([]byte) ([]byte, error)
		magic string
	}{
		"walg-openpgp.zst":        {pgp, func(p []byte) ([]byte, error) { return gpg(p, "--decrypt") }, "\x28\xb5\x2f\xfd"},
		"walg-openpgp-wal.zst":    {pgp, func(p []byte) ([]byte, error) { return gpg(p, "--decrypt") }, "\x28\xb5\x2f\xfd"},
		"walg-libsodium.lzma":     {fixtureSodium(t), func(p []byte) ([]byte, error) { return sodium(p, "open") }, "\x5d\x00\x00"},
		"walg-libsodium-wal.lzma": {fixtureSodium(t), func(p []byte) ([]byte, error) { return sodium(p, "open") }, "\x5d\x00\x00"},
	} {
		object := testdata(t, name)
		want, err := c.other(object)
		if err != nil {
			t.Fatal(name, err)
		}
		got, err := opened(c.s, bytes.NewReader(object))
		same := bytes.Equal(got, want)
		if c.s == pgp {
			// WAL-G marks its data as text, and gpg drops the returns.
			same = bytes.Equal(bytes.ReplaceAll(got, []byte("\r"), nil), want)
		}
		if err != nil || !same || !bytes.HasPrefix(got, []byte(c.magic)) {
			t.Errorf("%s: %d bytes, want %d: %v", name, len(got), len(want), err)
		}
		for cut := 0; cut < len(object); cut += 1 + len(object)/500 {
			wantDamaged(t, c.s, object[:cut], fmt.Sprintf("%s: %d of %d bytes", name, cut, len(object)))
		}
		if strings.HasPrefix(name, "walg-libsodium") {
			continue
		}
		// gpg refuses what we refuse.
		altered := bytes.Clone(object)
		altered[len(altered)-40] ^= 1
		if _, err := c.other(altered); err == nil {
			t.Error("gpg takes an altered message")
		}
		wantDamaged(t, c.s, altered, name)
	}
}

// Where a large write comes in one piece, the memory held does not grow with
// it: what the library gets is cut.
func TestOpenPGPCutsLargeWrites(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var largest int
	sink := writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		largest = max(largest, len(p))
		return len(p), nil
	})
	w, err := newPGP(t, string(testdata(t, "pgp-public.asc")), "").Seal(context.Background(), sink)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(noise(16 << 20)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if largest > 128<<10 {
		t.Fatalf("one write of %d bytes came out", largest)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A forged object of nothing but key packets ends at the bound, not with the
// memory.
func TestOpenPGPBoundsTheHead(t *testing.T) {
	t.Parallel()
	object := sealed(t, newPGP(t, string(testdata(t, "pgp-public.asc")), ""), noise(10), 10)
	key := object[:271]
	var read int
	endless := readerFunc(func(p []byte) (int, error) {
		n := copy(p, key[read%len(key):])
		read += n
		return n, nil
	})
	_, err := newPGP(t, string(testdata(t, "pgp-private.asc")), "").Open(context.Background(), endless)
	if !errors.Is(err, ErrCorrupt) || read > 2*pgpHead {
		t.Fatalf("%v after %d bytes", err, read)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

var _ io.Reader = readerFunc(nil)
