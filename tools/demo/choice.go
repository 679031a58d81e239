package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/walherd/walherd/storage/s3/s3test"
)

// What the flags choose from; the first of each is the default.
const (
	storageFile, storageS3                              = "file", "s3"
	encryptionNone, encryptionSodium, encryptionOpenPGP = "none", "libsodium", "openpgp"
)

// unpacker is the program that a stranger unpacks a method's objects with, and
// what their names end in.
func unpacker(compression string) (command, ext string, err error) {
	switch compression {
	case "lz4":
		return "lz4 -dcq", ".lz4", nil
	case "zstd":
		return "zstd -dcq", ".zst", nil
	case "brotli":
		return "brotli -dc", ".br", nil
	case "lzma":
		return "xz --format=lzma -dc", ".lzma", nil
	case "none":
		return "cat", "", nil
	}
	return "", "", fmt.Errorf("read flags: compression %q: want lz4, zstd, brotli, lzma or none", compression)
}

func (o options) check() error {
	if _, _, err := unpacker(o.compression); err != nil {
		return err
	}
	switch o.storage {
	case storageFile, storageS3:
	default:
		return fmt.Errorf("read flags: storage %q: want file or s3", o.storage)
	}
	switch o.encryption {
	case encryptionNone, encryptionSodium, encryptionOpenPGP:
	default:
		return fmt.Errorf("read flags: encryption %q: want none, libsodium or openpgp", o.encryption)
	}
	return nil
}

// chosen tells that something else than the default is shown.
func (o options) chosen() bool {
	return o.storage != storageFile || o.compression != "lz4" || o.encryption != encryptionNone
}

// openStorage makes the storage and writes the settings that lead to it.
func (d *demo) openStorage() error {
	settings := ""
	if d.opt.storage == storageS3 {
		s, err := d.startS3()
		if err != nil {
			return err
		}
		d.storage = filepath.Join(d.root, "s3", "data", s3Bucket, s3Prefix)
		settings = fmt.Sprintf("WALG_S3_PREFIX: s3://%s/%s\nAWS_ENDPOINT: %s\nAWS_S3_FORCE_PATH_STYLE: true\nAWS_REGION: %s\nAWS_ACCESS_KEY_ID: %s\nAWS_SECRET_ACCESS_KEY: %s\n",
			s3Bucket, s3Prefix, s.Endpoint, s.Region, s.AccessKeyID, s.SecretAccessKey)
	} else {
		d.c.Run("mkdir", d.storage)
		settings = fmt.Sprintf("WALG_FILE_PREFIX: %s\n", d.storage)
	}
	if d.opt.compression != "lz4" {
		settings += fmt.Sprintf("WALG_COMPRESSION_METHOD: %s\n", d.opt.compression)
	}
	var key string
	var err error
	switch d.opt.encryption {
	case encryptionSodium:
		key, err = d.sodiumKey()
	case encryptionOpenPGP:
		key, err = d.pgpKey()
	}
	if err != nil {
		return err
	}
	return d.writeSecret(d.config, settings+key)
}

// writeSecret writes a file for the server's user alone.
func (d *demo) writeSecret(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return giveTo(path, d.c.DataDir())
}

const s3Bucket, s3Prefix = "walherd", "main"

// startS3 runs a real S3 server, whose objects are files below its directory.
func (d *demo) startS3() (*s3test.Server, error) {
	d.say("starting an S3 server (the first time ever it is built, which takes minutes)")
	s, err := s3test.Run(d.ctx, filepath.Join(d.root, "s3"), s3test.Options{})
	if err != nil {
		return nil, fmt.Errorf("start an S3 server: %w", err)
	}
	d.t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			d.t.Logf("stop the S3 server: %v", err)
		}
	})
	if err := s.MakeBucket(s3Bucket); err != nil {
		return nil, err
	}
	d.say("the S3 server (versitygw) listens on %s, bucket %s", s.Endpoint, s3Bucket)
	return s, nil
}

// sodiumKey makes a key of libsodium's and compiles the program that opens
// objects with libsodium itself.
func (d *demo) sodiumKey() (settings string, err error) {
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("make a key: %w", err)
	}
	key, helper := filepath.Join(d.root, "libsodium.key"), filepath.Join(d.root, "bin", "secretstream")
	if err := d.writeSecret(key, hex.EncodeToString(raw)); err != nil {
		return "", err
	}
	out, err := exec.CommandContext(d.ctx, "gcc", "-O2", "-o", helper, secretstream, "-lsodium").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("compile %s against libsodium (make deps installs it): %w: %s", secretstream, err, out)
	}
	d.decrypt = fmt.Sprintf(`%s open "$(cat %s)"`, helper, key)
	return fmt.Sprintf("WALG_LIBSODIUM_KEY_PATH: %s\nWALG_LIBSODIUM_KEY_TRANSFORM: hex\n", key), nil
}

// secretstream is the stranger's reader that the encryption's manual names.
const secretstream = "engine/seal/testdata/secretstream.c"

// pgpKey has gpg make a key pair.
func (d *demo) pgpKey() (settings string, err error) {
	home, key := filepath.Join(d.root, "gpg"), filepath.Join(d.root, "pgp-private.asc")
	gpg := "gpg --homedir " + home + " --batch --quiet --no-tty --pinentry-mode loopback --passphrase ''"
	d.c.Run("mkdir", "-m", "700", home)
	d.t.Cleanup(func() { _ = d.c.Command(d.ctx, "gpgconf", "--homedir", home, "--kill", "all").Run() })
	if _, err := d.shell(gpg + " --quick-generate-key demo@example.invalid rsa3072 encrypt never && " +
		"umask 077 && " + gpg + " --armor --export-secret-keys demo@example.invalid > " + key); err != nil {
		return "", fmt.Errorf("make a key with gpg (make deps installs it): %w", err)
	}
	d.decrypt = gpg + " --decrypt"
	return fmt.Sprintf("WALG_PGP_KEY_PATH: %s\n", key), nil
}

// shell runs a script as the server's user; a pipe fails when a part of it
// does.
func (d *demo) shell(script string) (string, error) {
	out, err := d.c.RunErr("bash", "-o", "pipefail", "-c", script)
	if d.ctx.Err() != nil {
		return "", errors.New("interrupted")
	}
	return out, err
}
