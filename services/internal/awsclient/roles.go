package awsclient

import (
	"context"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

const (
	// sessionDuration is what every role allows, and the most that one assumed by
	// another may last.
	sessionDuration = time.Hour
	// refreshAhead is how long before its end a session is renewed; a short session
	// after three quarters of its life.
	refreshAhead = 5 * time.Minute
	// retryAfter is how long an old session goes on being used when its renewal
	// failed and it has not ended.
	retryAfter = 15 * time.Second
)

// assumeRoles puts the roles of c over the credentials of cfg: the base role first,
// by web identity if there is a token for it, and from it the target role. The
// external id goes with the last one.
func assumeRoles(cfg *aws.Config, c Config) {
	var roles []string
	for _, role := range []string{c.BaseAssumeRole, c.TargetAssumeRole} {
		if role != "" {
			roles = append(roles, role)
		}
	}
	for i, role := range roles {
		client := sts.NewFromConfig(*cfg, func(o *sts.Options) {
			if c.STSEndpointURL != "" {
				o.BaseEndpoint = aws.String(c.STSEndpointURL)
			}
			if o.Region == "" {
				o.Region = regionOfNowhere
			}
		})
		name := c.SessionName
		if name == "" {
			name = defaultSession
		}
		if i == 0 && c.WebIdentityTokenFile != "" {
			provider := stscreds.NewWebIdentityRoleProvider(client, role, stscreds.IdentityTokenFile(c.WebIdentityTokenFile), func(o *stscreds.WebIdentityRoleOptions) {
				o.Duration, o.RoleSessionName = sessionDuration, name
			})
			cfg.Credentials = aws.NewCredentialsCache(&renewed{from: provider})
			continue
		}
		provider := stscreds.NewAssumeRoleProvider(client, role, func(o *stscreds.AssumeRoleOptions) {
			o.Duration, o.RoleSessionName = sessionDuration, name
			if i == len(roles)-1 && c.AssumeRoleExternalID != "" {
				o.ExternalID = aws.String(c.AssumeRoleExternalID)
			}
		})
		cfg.Credentials = aws.NewCredentialsCache(&renewed{from: provider})
	}
}

// renewed makes a session look as if it ended early, so that the cache around it
// asks for the next one in time. An expiry window of the cache would do the same,
// but for sessions shorter than the window it would ask on every call.
type renewed struct {
	from aws.CredentialsProvider

	mu   sync.Mutex
	ends time.Time // of the last session
}

// Retrieve implements [aws.CredentialsProvider].
func (r *renewed) Retrieve(ctx context.Context) (aws.Credentials, error) {
	creds, err := r.from.Retrieve(ctx)
	if err != nil || !creds.CanExpire {
		return creds, err
	}
	r.mu.Lock()
	r.ends = creds.Expires
	r.mu.Unlock()
	creds.Expires = creds.Expires.Add(-min(refreshAhead, time.Until(creds.Expires)/4))
	return creds, nil
}

// HandleFailToRefresh keeps the old session in use while it lasts.
// It implements [aws.HandleFailRefreshCredentialsCacheStrategy].
func (r *renewed) HandleFailToRefresh(_ context.Context, old aws.Credentials, err error) (aws.Credentials, error) {
	r.mu.Lock()
	left := time.Until(r.ends)
	r.mu.Unlock()
	if !old.HasKeys() || left <= 0 {
		return aws.Credentials{}, err
	}
	old.Expires = time.Now().Add(min(retryAfter, left))
	return old, nil
}

// AdjustExpiresBy leaves the end where Retrieve put it.
// It implements [aws.AdjustExpiresByCredentialsCacheStrategy].
func (r *renewed) AdjustExpiresBy(creds aws.Credentials, _ time.Duration) (aws.Credentials, error) {
	return creds, nil
}
