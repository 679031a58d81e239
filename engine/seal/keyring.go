package seal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

const armorBegin = "-----BEGIN PGP "

// Tags of the packets that begin a key of a ring (RFC 9580, section 5).
const (
	tagSecretKey = 5
	tagPublicKey = 6
)

// readRing reads every armored block of text. A key that is in two blocks is
// taken once, with its private part if any block has it. A key that cannot be
// read is an error: leaving it out would make objects that its owner cannot
// open.
func readRing(text string) (openpgp.EntityList, error) {
	blocks := armoredBlocks(text)
	if len(blocks) == 0 {
		return nil, errors.New("no armored OpenPGP key found (export it with gpg --armor --export or --export-secret-keys)")
	}
	var ring openpgp.EntityList
	known := map[string]int{}
	for i, block := range blocks {
		keys, err := readBlock(block)
		if err != nil {
			return nil, fmt.Errorf("armored block %d: %w", i+1, err)
		}
		for _, e := range keys {
			at, seen := known[string(e.PrimaryKey.Fingerprint)]
			switch {
			case !seen:
				known[string(e.PrimaryKey.Fingerprint)] = len(ring)
				ring = append(ring, e)
			case ring[at].PrivateKey == nil:
				ring[at] = e
			}
		}
	}
	return ring, nil
}

// armoredBlocks cuts text before each line that begins a block.
func armoredBlocks(text string) []string {
	var blocks []string
	for {
		start := strings.Index(text, armorBegin)
		if start < 0 {
			return blocks
		}
		text = text[start:]
		end := strings.Index(text[1:], armorBegin) + 1
		if end == 0 {
			end = len(text)
		}
		blocks = append(blocks, text[:end])
		text = text[end:]
	}
}

func readBlock(text string) (openpgp.EntityList, error) {
	block, err := armor.Decode(strings.NewReader(text))
	if err != nil {
		return nil, errors.New("bad armor: the block is incomplete or was altered")
	}
	if block.Type != openpgp.PublicKeyType && block.Type != openpgp.PrivateKeyType {
		return nil, fmt.Errorf("it is a %s, want a key", block.Type)
	}
	body, err := io.ReadAll(block.Body)
	if err != nil {
		return nil, errors.New("bad armor: the block is incomplete or was altered")
	}
	want, err := countKeys(body)
	if err != nil {
		return nil, err
	}
	// A library error may quote what it met, so only its fact is passed on.
	keys, err := openpgp.ReadKeyRing(bytes.NewReader(body))
	if err != nil || len(keys) == 0 || len(keys) != want {
		return nil, fmt.Errorf("%d of %d keys can be read; the others are damaged or of an unsupported kind", len(keys), want)
	}
	return keys, nil
}

// countKeys counts the primary keys of a ring, also those that the library
// passes over.
func countKeys(body []byte) (n int, err error) {
	packets := packet.NewOpaqueReader(bytes.NewReader(body))
	for {
		p, err := packets.Next()
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, errors.New("the key's packets are damaged")
		}
		if p.Tag == tagSecretKey || p.Tag == tagPublicKey {
			n++
		}
	}
}

// unlock decrypts every locked private key of the ring.
func unlock(ring openpgp.EntityList, passphrase string) error {
	for _, e := range ring {
		if !locked(e) {
			continue
		}
		if passphrase == "" {
			return fmt.Errorf("private key %s is locked by a passphrase: set WALG_PGP_KEY_PASSPHRASE, or configure the public key if this host only uploads", keyName(e))
		}
		if err := e.DecryptPrivateKeys([]byte(passphrase)); err != nil || locked(e) {
			return fmt.Errorf("the passphrase does not unlock private key %s: check WALG_PGP_KEY_PASSPHRASE", keyName(e))
		}
	}
	return nil
}

func locked(e *openpgp.Entity) bool {
	for _, k := range privateKeys(e) {
		if k.Encrypted {
			return true
		}
	}
	return false
}

// privateKeys lists the private keys that are really there: gpg exports a
// stub in place of a primary key that is kept elsewhere.
func privateKeys(e *openpgp.Entity) []*packet.PrivateKey {
	var keys []*packet.PrivateKey
	if e.PrivateKey != nil && !e.PrivateKey.Dummy() {
		keys = append(keys, e.PrivateKey)
	}
	for _, s := range e.Subkeys {
		if s.PrivateKey != nil && !s.PrivateKey.Dummy() {
			keys = append(keys, s.PrivateKey)
		}
	}
	return keys
}

// keyName is a key's long id as gpg prints it.
func keyName(e *openpgp.Entity) string { return fmt.Sprintf("%016X", e.PrimaryKey.KeyId) }

// recipientErr tells why a key cannot be a recipient at this time.
func recipientErr(e *openpgp.Entity, now time.Time) error {
	if _, ok := e.EncryptionKey(now); !ok {
		return fmt.Errorf("OpenPGP key %s has no valid encryption key: it is expired, revoked or made for signing only", keyName(e))
	}
	return nil
}
