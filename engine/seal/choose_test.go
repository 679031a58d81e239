package seal

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func keyFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret-name-of-a-key-file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// everything is a set of settings with every method but the envelope.
func everything(t *testing.T) Options {
	return Options{
		PGPKey:                  string(testdata(t, "pgp-private.asc")),
		CSEKMSID:                "aws-key",
		CSEKMSRegion:            "eu-central-1",
		YCCSEKMSKeyID:           "yandex-key",
		YCServiceAccountKeyFile: "file",
		LibsodiumKey:            fixtureKey,
		AWS:                     func(context.Context, AWSKeyOptions) (KeyService, error) { return newFakeService(awsBlob), nil },
		Yandex:                  func(context.Context, YandexKeyOptions) (KeyService, error) { return newFakeService(0), nil },
	}
}

func TestChooseTakesTheFirst(t *testing.T) {
	t.Parallel()
	o := everything(t)
	want := func(describe string) {
		t.Helper()
		s, err := Choose(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		if s == nil || !strings.HasPrefix(s.Describe(), describe) {
			t.Fatalf("chose %v, want %s", s, describe)
		}
		data := noise(20000)
		if got, err := opened(s, bytes.NewReader(sealed(t, s, data, 500))); err != nil || !bytes.Equal(got, data) {
			t.Fatal(len(got), err)
		}
	}
	want("OpenPGP, private key C27E20AEEB827A1A")
	o.PGPKey = strings.ReplaceAll(o.PGPKey, "\n", `\n`)
	want("OpenPGP, private key")
	o.PGPKeyPath, o.PGPKey = keyFile(t, "\n"+string(testdata(t, "pgp-private.asc"))), ""
	want("OpenPGP, private key")
	o.PGPKeyPath = ""
	o.EnvelopePGPKey, o.EnvelopeYCKMSKeyID = fixtureEnvelope(t, newFakeService(0)), "key"
	want("envelope OpenPGP")
	o.EnvelopePGPKeyPath, o.EnvelopePGPKey = keyFile(t, o.EnvelopePGPKey+"\n"), ""
	want("envelope OpenPGP")
	o.EnvelopePGPKeyPath, o.EnvelopeYCKMSKeyID = "", ""
	want("AWS KMS")
	o.CSEKMSID, o.CSEKMSRegion = "", ""
	want("Yandex KMS")
	o.YCCSEKMSKeyID = ""
	want("libsodium")
	o.LibsodiumKeyPath, o.LibsodiumKey = keyFile(t, " \n"+fixtureKey+"\n"), ""
	want("libsodium")
	o.LibsodiumKeyPath = ""
	if s, err := Choose(context.Background(), o); s != nil || err != nil {
		t.Fatalf("no key: %v, %v", s, err)
	}
}

// Every setting that cannot be used is an error that names it, and tells
// neither a key nor a path.
func TestChooseRefuses(t *testing.T) {
	t.Parallel()
	private := string(testdata(t, "pgp-private.asc"))
	envelope := fixtureEnvelope(t, newFakeService(0))
	yandex := func(context.Context, YandexKeyOptions) (KeyService, error) { return newFakeService(0), nil }
	const secret = "SecretSecretSecretSecretSecret12"
	for _, c := range []struct {
		name, want string
		o          Options
	}{
		{"external gpg", "WALG_PGP_KEY_PATH", Options{GPGKeyID: "0123"}},
		{"external gpg and a key", "WALG_GPG_KEY_ID", Options{GPGKeyID: "0123", PGPKey: private}},
		{"pgp and envelope", "WALG_ENVELOPE_PGP_KEY", Options{PGPKey: private, EnvelopePGPKey: envelope}},
		{"passphrase alone", "WALG_PGP_KEY_PASSPHRASE", Options{PGPKeyPassphrase: secret}},
		{"passphrase and libsodium", "WALG_PGP_KEY_PASSPHRASE", Options{PGPKeyPassphrase: secret, LibsodiumKey: fixtureKey}},
		{"no armor", "use WALG_PGP_KEY:", Options{PGPKey: secret}},
		{"path as key", "use WALG_PGP_KEY:", Options{PGPKey: "/etc/" + secret}},
		{"key as path", "WALG_PGP_KEY_PATH", Options{PGPKeyPath: secret}},
		{"long key as path", "WALG_PGP_KEY_PATH", Options{PGPKeyPath: private}},
		{"directory", "WALG_PGP_KEY_PATH", Options{PGPKeyPath: os.TempDir()}},
		{"cut armor", "use WALG_PGP_KEY:", Options{PGPKey: private[:len(private)/2]}},
		{"altered armor", "use WALG_PGP_KEY:", Options{PGPKey: strings.Replace(private, private[200:204], "AAAA", 1)}},
		{"empty armor", "use WALG_PGP_KEY:", Options{PGPKey: "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n-----END PGP PUBLIC KEY BLOCK-----\n"}},
		{"message", "use WALG_PGP_KEY:", Options{PGPKey: strings.ReplaceAll(private, "PRIVATE KEY BLOCK", "MESSAGE")}},
		{"empty file", "WALG_PGP_KEY_PATH", Options{PGPKeyPath: keyFile(t, " \n")}},
		{"envelope without kms key", "WALG_ENVELOPE_PGP_YC_CSE_KMS_KEY_ID", Options{EnvelopePGPKey: envelope}},
		{"envelope without client", "no client of Yandex KMS", Options{EnvelopePGPKey: envelope, EnvelopeYCKMSKeyID: "k"}},
		{"envelope no base64", "WALG_ENVELOPE_PGP_KEY", Options{EnvelopePGPKey: secret + "!", EnvelopeYCKMSKeyID: "k", Yandex: yandex}},
		{"envelope not wrapped", "WALG_ENVELOPE_PGP_KEY", Options{EnvelopePGPKey: base64.StdEncoding.EncodeToString([]byte(secret)), EnvelopeYCKMSKeyID: "k", Yandex: yandex}},
		{"kms key alone", "WALG_ENVELOPE_PGP_YC_CSE_KMS_KEY_ID", Options{EnvelopeYCKMSKeyID: "k"}},
		{"region alone", "WALG_CSE_KMS_REGION", Options{CSEKMSRegion: "eu"}},
		{"yandex without client", "YC_CSE_KMS_KEY_ID", Options{YCCSEKMSKeyID: "k"}},
		{"transform alone", "WALG_LIBSODIUM_KEY_TRANSFORM", Options{LibsodiumKeyTransform: "hex"}},
		{"unknown transform", "WALG_LIBSODIUM_KEY_TRANSFORM", Options{LibsodiumKey: secret, LibsodiumKeyTransform: "rot13"}},
		{"short", "WALG_LIBSODIUM_KEY", Options{LibsodiumKey: secret[:24]}},
		{"no hex", "WALG_LIBSODIUM_KEY", Options{LibsodiumKey: secret, LibsodiumKeyTransform: "hex"}},
		{"short hex", "WALG_LIBSODIUM_KEY", Options{LibsodiumKey: hex.EncodeToString([]byte(secret[1:])), LibsodiumKeyTransform: "hex"}},
		{"no base64", "WALG_LIBSODIUM_KEY", Options{LibsodiumKey: secret + "=!", LibsodiumKeyTransform: "base64"}},
		{"long base64", "WALG_LIBSODIUM_KEY", Options{LibsodiumKey: base64.StdEncoding.EncodeToString([]byte(secret + "x")), LibsodiumKeyTransform: "base64"}},
		{"key as libsodium path", "WALG_LIBSODIUM_KEY_PATH", Options{LibsodiumKeyPath: secret}},
		{"short file", "WALG_LIBSODIUM_KEY_PATH", Options{LibsodiumKeyPath: keyFile(t, secret[:24])}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, err := Choose(context.Background(), c.o)
			if err == nil || s != nil {
				t.Fatalf("%v, %v", s, err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\ndoes not name %s", err, c.want)
			}
			for _, key := range []string{secret, secret[:24], "secret-name-of", hex.EncodeToString([]byte(secret[1:])), private[150:200]} {
				if strings.Contains(err.Error(), key) {
					t.Errorf("%v\ntells %s", err, key)
				}
			}
		})
	}
}

func TestLibsodiumTransforms(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		o    LibsodiumOptions
		want string
	}{
		{LibsodiumOptions{Key: fixtureKey}, fixtureKey},
		{LibsodiumOptions{Key: fixtureKey + "cut off", Transform: TransformNone}, fixtureKey},
		{LibsodiumOptions{Key: fixtureKey[:25], Transform: TransformNone}, fixtureKey[:25] + "\x00\x00\x00\x00\x00\x00\x00"},
		{LibsodiumOptions{Key: base64.StdEncoding.EncodeToString([]byte(fixtureKey)), Transform: TransformBase64}, fixtureKey},
		{LibsodiumOptions{Key: hex.EncodeToString([]byte(fixtureKey)), Transform: TransformHex}, fixtureKey},
		{LibsodiumOptions{Key: strings.ToUpper(hex.EncodeToString([]byte(fixtureKey))), Transform: TransformHex}, fixtureKey},
	} {
		key, err := c.o.key()
		if err != nil || string(key[:]) != c.want {
			t.Errorf("%+v: %q, %v", c.o, key, err)
		}
	}
}
