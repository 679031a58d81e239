package seal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"
)

// keyFileLimit bounds a key file, in bytes, against a path that names
// something else.
const keyFileLimit = 4 << 20

// Options are the encryption settings as the user wrote them, each named as in
// its comment. Empty is unset.
type Options struct {
	PGPKey           string // WALG_PGP_KEY; the characters \n stand for a line end; wins over the path
	PGPKeyPath       string // WALG_PGP_KEY_PATH
	PGPKeyPassphrase string // WALG_PGP_KEY_PASSPHRASE
	GPGKeyID         string // WALG_GPG_KEY_ID, WALE_GPG_KEY_ID or GPG_KEY_ID; refused

	EnvelopePGPKey           string        // WALG_ENVELOPE_PGP_KEY; wins over the path
	EnvelopePGPKeyPath       string        // WALG_ENVELOPE_PGP_KEY_PATH
	EnvelopeCacheExpiration  time.Duration // WALG_ENVELOPE_CACHE_EXPIRATION; 0 is for ever
	EnvelopeYCKMSKeyID       string        // WALG_ENVELOPE_PGP_YC_CSE_KMS_KEY_ID
	EnvelopeYCServiceAccount string        // WALG_ENVELOPE_PGP_YC_SERVICE_ACCOUNT_KEY_FILE
	EnvelopeYCEndpoint       string        // WALG_ENVELOPE_PGP_YC_ENDPOINT

	CSEKMSID     string // WALG_CSE_KMS_ID
	CSEKMSRegion string // WALG_CSE_KMS_REGION

	YCCSEKMSKeyID           string // YC_CSE_KMS_KEY_ID
	YCServiceAccountKeyFile string // YC_SERVICE_ACCOUNT_KEY_FILE

	LibsodiumKey          string // WALG_LIBSODIUM_KEY; wins over the path
	LibsodiumKeyPath      string // WALG_LIBSODIUM_KEY_PATH
	LibsodiumKeyTransform string // WALG_LIBSODIUM_KEY_TRANSFORM; empty is none

	// AWS makes the KeyService of CSEKMSID; this package opens no network
	// connection. nil is none, and CSEKMSID is an error then.
	AWS func(context.Context, AWSKeyOptions) (KeyService, error)

	// Yandex makes the KeyService of a key of Yandex KMS. nil is none: this
	// package has no client of that service, and settings that need one are
	// an error.
	Yandex func(context.Context, YandexKeyOptions) (KeyService, error)
}

// AWSKeyOptions names a key of AWS KMS for Options.AWS.
type AWSKeyOptions struct {
	// Key is the id, ARN or alias of a symmetric key (WALG_CSE_KMS_ID).
	Key string
	// Region is the key's (WALG_CSE_KMS_REGION); empty takes that of the AWS
	// environment.
	Region string
}

// YandexKeyOptions names a key of Yandex KMS for Options.Yandex.
type YandexKeyOptions struct {
	Key                string // id of the symmetric key
	ServiceAccountFile string // authorized key of a service account, JSON; empty if unset
	Endpoint           string // empty is the service's own
}

var errNoYandex = errors.New("this program has no client of Yandex KMS: configure another method")

// Choose makes the Sealer that the settings ask for; the first method with a
// key wins, in WAL-G's order: OpenPGP, envelope OpenPGP, AWS KMS, Yandex KMS,
// libsodium. Without any encryption setting it returns nil and no error:
// objects are stored plain.
//
// Any encryption setting that would have no effect because its key is missing
// is an error, for objects would be plain where somebody meant them sealed.
// OpenPGP and envelope OpenPGP together are an error, as in WAL-G. An external
// gpg is refused under each of its names: WAL-G stores plaintext under two of
// the three. Errors name the setting and hold neither key nor path.
func Choose(ctx context.Context, o Options) (Sealer, error) {
	pgp := o.PGPKey != "" || o.PGPKeyPath != ""
	envelope := o.EnvelopePGPKey != "" || o.EnvelopePGPKeyPath != ""
	switch {
	case o.GPGKeyID != "":
		return nil, errors.New("use WALG_GPG_KEY_ID: an external gpg is not supported: export the key (gpg --armor --export ID to upload, --export-secret-keys ID to restore too), set WALG_PGP_KEY_PATH to that file and remove WALG_GPG_KEY_ID, WALE_GPG_KEY_ID and GPG_KEY_ID")
	case pgp && envelope:
		return nil, errors.New("use WALG_PGP_KEY: WALG_ENVELOPE_PGP_KEY is set too: remove one of the two methods")
	}
	if err := o.orphans(pgp, envelope); err != nil {
		return nil, err
	}
	switch {
	case pgp:
		return o.openPGP()
	case envelope:
		return o.envelopePGP(ctx)
	case o.CSEKMSID != "":
		return o.awsKMS(ctx)
	case o.YCCSEKMSKeyID != "":
		return o.yandexKMS(ctx)
	case o.LibsodiumKey != "" || o.LibsodiumKeyPath != "":
		return o.libsodium()
	}
	return nil, nil
}

// orphans finds a setting whose key is missing.
func (o Options) orphans(pgp, envelope bool) error {
	for _, s := range []struct {
		name, value, needs string
		ok                 bool
	}{
		{"WALG_PGP_KEY_PASSPHRASE", o.PGPKeyPassphrase, "WALG_PGP_KEY_PATH", pgp},
		{"WALG_ENVELOPE_PGP_YC_CSE_KMS_KEY_ID", o.EnvelopeYCKMSKeyID, "WALG_ENVELOPE_PGP_KEY_PATH", envelope},
		{"WALG_ENVELOPE_PGP_YC_SERVICE_ACCOUNT_KEY_FILE", o.EnvelopeYCServiceAccount, "WALG_ENVELOPE_PGP_KEY_PATH", envelope},
		{"WALG_ENVELOPE_PGP_YC_ENDPOINT", o.EnvelopeYCEndpoint, "WALG_ENVELOPE_PGP_KEY_PATH", envelope},
		{"WALG_CSE_KMS_REGION", o.CSEKMSRegion, "WALG_CSE_KMS_ID", o.CSEKMSID != ""},
	} {
		if s.value != "" && !s.ok {
			return fmt.Errorf("use %s: there is no key to use it with: set %s too, or remove it", s.name, s.needs)
		}
	}
	switch o.LibsodiumKeyTransform {
	case "", TransformNone:
		return nil
	case TransformBase64, TransformHex:
		if o.LibsodiumKey == "" && o.LibsodiumKeyPath == "" {
			return errors.New("use WALG_LIBSODIUM_KEY_TRANSFORM: there is no key to use it with: set WALG_LIBSODIUM_KEY_PATH too, or remove it")
		}
		return nil
	}
	return fmt.Errorf("use WALG_LIBSODIUM_KEY_TRANSFORM: unknown transform %q (want none, base64 or hex)", o.LibsodiumKeyTransform)
}

func (o Options) openPGP() (Sealer, error) {
	text, name, err := keyText(strings.ReplaceAll(o.PGPKey, `\n`, "\n"), o.PGPKeyPath, "WALG_PGP_KEY")
	if err != nil {
		return nil, err
	}
	s, err := NewOpenPGP(OpenPGPOptions{Armor: text, Passphrase: o.PGPKeyPassphrase})
	return named(s, name, err)
}

func (o Options) envelopePGP(ctx context.Context) (Sealer, error) {
	if o.EnvelopeYCKMSKeyID == "" {
		return nil, errors.New("use WALG_ENVELOPE_PGP_KEY: set WALG_ENVELOPE_PGP_YC_CSE_KMS_KEY_ID too, the key that wraps it")
	}
	text, name, err := keyText(o.EnvelopePGPKey, o.EnvelopePGPKeyPath, "WALG_ENVELOPE_PGP_KEY")
	if err != nil {
		return nil, err
	}
	service, err := o.yandex(ctx, YandexKeyOptions{Key: o.EnvelopeYCKMSKeyID, ServiceAccountFile: o.EnvelopeYCServiceAccount, Endpoint: o.EnvelopeYCEndpoint})
	if err != nil {
		return nil, fmt.Errorf("use WALG_ENVELOPE_PGP_YC_CSE_KMS_KEY_ID: %w", err)
	}
	s, err := NewEnvelopePGP(ctx, EnvelopePGPOptions{Key: text, Service: service, Expiration: o.EnvelopeCacheExpiration})
	return named(s, name, err)
}

func (o Options) awsKMS(ctx context.Context) (Sealer, error) {
	if o.AWS == nil {
		return nil, errors.New("use WALG_CSE_KMS_ID: this program has no client of AWS KMS")
	}
	service, err := o.AWS(ctx, AWSKeyOptions{Key: o.CSEKMSID, Region: o.CSEKMSRegion})
	if err != nil {
		return nil, fmt.Errorf("use WALG_CSE_KMS_ID: %w", err)
	}
	return NewAWSKMS(service), nil
}

func (o Options) yandexKMS(ctx context.Context) (Sealer, error) {
	service, err := o.yandex(ctx, YandexKeyOptions{Key: o.YCCSEKMSKeyID, ServiceAccountFile: o.YCServiceAccountKeyFile})
	if err != nil {
		return nil, fmt.Errorf("use YC_CSE_KMS_KEY_ID: %w", err)
	}
	return NewYandexKMS(service), nil
}

func (o Options) yandex(ctx context.Context, k YandexKeyOptions) (KeyService, error) {
	if o.Yandex == nil {
		return nil, errNoYandex
	}
	return o.Yandex(ctx, k)
}

func (o Options) libsodium() (Sealer, error) {
	text, name, err := keyText(o.LibsodiumKey, o.LibsodiumKeyPath, "WALG_LIBSODIUM_KEY")
	if err != nil {
		return nil, err
	}
	s, err := NewLibsodium(LibsodiumOptions{Key: text, Transform: o.LibsodiumKeyTransform})
	return named(s, name, err)
}

// named adds the setting to a constructor's error, and keeps a typed nil from
// passing as a Sealer.
func named(s Sealer, setting string, err error) (Sealer, error) {
	if err != nil {
		return nil, fmt.Errorf("use %s: %w", setting, err)
	}
	return s, nil
}

// keyText is a key's text and the setting it comes from: the setting itself
// or, if that is empty, the trimmed contents of the file its _PATH names.
func keyText(value, path, setting string) (text, from string, err error) {
	if value != "" {
		return value, setting, nil
	}
	setting += "_PATH"
	text, err = readKeyFile(path)
	if err != nil {
		// Not the path: keys are put into the wrong setting.
		return "", setting, fmt.Errorf("read the file that %s names: %w", setting, err)
	}
	return text, setting, nil
}

func readKeyFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", withoutPath(err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, keyFileLimit+1))
	switch {
	case err != nil:
		return "", withoutPath(err)
	case len(text) > keyFileLimit:
		return "", fmt.Errorf("it has more than %d bytes and is no key", keyFileLimit)
	}
	if key := strings.TrimSpace(string(text)); key != "" {
		return key, nil
	}
	return "", errors.New("it is empty")
}

func withoutPath(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
