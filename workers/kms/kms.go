// Package kms holds the clients of key management services behind envelope
// encryption, AWS's and Yandex Cloud's: they wrap and unwrap data keys over the
// network, which engine/seal must not do itself.
//
// A missing permission or an unreachable service is an error of the first call,
// before anything is stored.
package kms

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/walherd/walherd/engine/seal"
)

// awsKey is the seal.KeyService of NewAWS.
type awsKey struct {
	client *kms.Client
	key    string
	region string
}

// NewAWS returns the KeyService of a key in AWS KMS. It loads the
// AWS configuration, which load may change (credentials, HTTP client, endpoint), and does not call the service; a missing permission is an
// error of the first Wrap or Unwrap. The SDK retries what is worth it.
func NewAWS(ctx context.Context, o seal.AWSKeyOptions, load ...func(*config.LoadOptions) error) (seal.KeyService, error) {
	if o.Key == "" {
		return nil, errors.New("configure AWS KMS: no key (set WALG_CSE_KMS_ID)")
	}
	if o.Region != "" {
		load = append([]func(*config.LoadOptions) error{config.WithRegion(o.Region)}, load...)
	}
	c, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("configure AWS KMS: %w", err)
	}
	if c.Region == "" {
		return nil, errors.New("configure AWS KMS: no region (set WALG_CSE_KMS_REGION)")
	}
	return &awsKey{client: kms.NewFromConfig(c), key: o.Key, region: c.Region}, nil
}

func (k *awsKey) Describe() string { return fmt.Sprintf("key %s in %s", k.key, k.region) }

func (k *awsKey) Wrap(ctx context.Context, key []byte) ([]byte, error) {
	out, err := k.client.Encrypt(ctx, &kms.EncryptInput{KeyId: &k.key, Plaintext: key})
	if err != nil {
		return nil, fmt.Errorf("encrypt with %s: %w", k.Describe(), err)
	}
	return out.CiphertextBlob, nil
}

func (k *awsKey) Unwrap(ctx context.Context, wrapped []byte) ([]byte, error) {
	// Without a key id AWS finds the key in the blob, also after the
	// configured one was replaced.
	out, err := k.client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: wrapped})
	var invalid *types.InvalidCiphertextException
	if errors.As(err, &invalid) {
		return nil, fmt.Errorf("decrypt with AWS KMS in %s: %w, or it is damaged (%w): %w", k.region, seal.ErrWrongKey, seal.ErrCorrupt, err)
	}
	if err != nil {
		return nil, fmt.Errorf("decrypt with AWS KMS in %s: %w", k.region, err)
	}
	return out.Plaintext, nil
}
