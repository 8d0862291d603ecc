package awsclient

import (
	"context"
	"crypto/sha256"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/penstock/penstock/services/internal/config"
)

// Shared makes clients that have connections and the certificates that they trust in
// common, and sessions where their roles are the same: with hundreds of queues, a copy of
// all certificates for each was a third of all memory. Each client has its own budget of
// retries, so that none pays for the errors of another.
//
// What was read from the environment and from files stays as it was then. The zero value
// is ready, and methods may be called concurrently.
type Shared struct {
	mu     sync.Mutex
	loaded map[access]aws.Config
}

// access is a [Config] to be compared: secrets are not equal under ==.
type access struct {
	Config
	secrets [sha256.Size]byte
}

func accessOf(c Config) access {
	a := access{Config: c, secrets: sha256.Sum256([]byte(c.SecretKey.Reveal() + "\x00" + c.SessionToken.Reveal()))}
	a.SecretKey, a.SessionToken = config.Secret{}, config.Secret{}
	return a
}

// S3 is as [S3].
func (s *Shared) S3(ctx context.Context, c Config) (*s3.Client, error) {
	cfg, err := s.load(ctx, c)
	if err != nil {
		return nil, err
	}
	return s3Client(cfg, c)
}

// SQS is as [SQS].
func (s *Shared) SQS(ctx context.Context, c Config) (*sqs.Client, error) {
	cfg, err := s.load(ctx, c)
	if err != nil {
		return nil, err
	}
	return sqsClient(cfg, c)
}

// load is [Load].
func (s *Shared) load(ctx context.Context, c Config) (aws.Config, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	who := c
	who.EndpointURL, who.PathStyle = "", false
	cfg, err := s.session(ctx, who)
	if err != nil {
		return aws.Config{}, err
	}
	return addressed(cfg.Copy(), c), nil
}

// session is what all with the same identity and the same certificates have in common;
// below its roles, with all others. It is called under the lock.
func (s *Shared) session(ctx context.Context, c Config) (aws.Config, error) {
	key := accessOf(c)
	if cfg, ok := s.loaded[key]; ok {
		return cfg, nil
	}
	self := Config{Region: c.Region, Profile: c.Profile, AccessKey: c.AccessKey, SecretKey: c.SecretKey, SessionToken: c.SessionToken, CAFile: c.CAFile}
	var cfg aws.Config
	if accessOf(self) == key {
		client, err := httpClient(c.CAFile)
		if err != nil {
			return aws.Config{}, err
		}
		if cfg, err = loadSelf(ctx, c, client); err != nil {
			return aws.Config{}, err
		}
	} else {
		below, err := s.session(ctx, self)
		if err != nil {
			return aws.Config{}, err
		}
		cfg = below.Copy()
		assumeRoles(&cfg, c)
	}
	if s.loaded == nil {
		s.loaded = map[access]aws.Config{}
	}
	s.loaded[key] = cfg
	return cfg, nil
}
