package console

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"time"

	"github.com/alexedwards/argon2id"

	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/httpserver"
)

// DefaultAddress is where the command penstock console listens when nothing else is said.
const DefaultAddress = "127.0.0.1:9180"

// Config configures the console.
type Config struct {
	// Address to listen on, host:port. Empty: no console beside the stages; the command
	// penstock console then uses 127.0.0.1:9180. An address that others reach needs
	// users or oidc. Without these only this machine gets in, as an operator.
	Address string `yaml:"address"`
	// TLS of the listener. Files are read again when they change.
	TLS httpserver.TLS `yaml:"tls"`
	// Users who may log in with a password.
	Users []User `yaml:"users"`
	// OIDC lets people log in at an identity provider.
	OIDC OIDC `yaml:"oidc"`
	// Session is how long people stay logged in.
	Session Session `yaml:"session"`
	// TrustedProxies are addresses and networks of proxies that are believed
	// X-Forwarded-For and X-Forwarded-Proto.
	TrustedProxies []string `yaml:"trusted_proxies"`
}

// User may log in with a password.
type User struct {
	// Name of the user. Required.
	Name string `yaml:"name"`
	// PasswordHash is the argon2id hash that penstock console hash prints. Required.
	PasswordHash config.Secret `yaml:"password_hash"`
	// Role is what the user may do: read-only sees all, operator also acts.
	Role Role `yaml:"role"`
}

// SetDefaults implements config.Defaulter.
func (u *User) SetDefaults() { u.Role = ReadOnly }

// Session configures sessions. They live in memory: a restart logs everybody out.
type Session struct {
	// Idle is after how long without a request people are logged out. What pages fetch
	// by themselves does not count. Unit: duration.
	Idle time.Duration `yaml:"idle"`
	// Lifetime is after how long they are logged out in any case. Unit: duration.
	Lifetime time.Duration `yaml:"lifetime"`
}

// OIDC configures login at an identity provider, by OpenID Connect with the
// authorization code flow and PKCE.
type OIDC struct {
	// Issuer is the URL of the provider, as in its discovery document. Empty: no login
	// by OIDC.
	Issuer string `yaml:"issuer"`
	// ClientID of the console at the provider.
	ClientID string `yaml:"client_id"`
	// ClientSecret of the console at the provider. Empty for a public client.
	ClientSecret config.Secret `yaml:"client_secret"`
	// URL of the console as browsers see it, e.g. https://penstock.example.com. The
	// provider must allow this with /login/oidc/callback behind it.
	URL string `yaml:"url"`
	// Scopes to ask for beside openid.
	Scopes []string `yaml:"scopes"`
	// NameClaim has the name under which people appear in the audit.
	NameClaim string `yaml:"name_claim"`
	// RoleClaim has what decides the role: a text or a list of texts, e.g. groups.
	RoleClaim string `yaml:"role_claim"`
	// Operators are the values of the claim that make an operator.
	Operators []string `yaml:"operators"`
	// ReadOnly are the values of the claim that let people read; "*" stands for
	// everybody who logs in. Whoever has none of both is refused.
	ReadOnly []string `yaml:"read_only"`
	// CAFile holds the certificates to trust at the provider, as PEM. Empty: those of
	// the system.
	CAFile string `yaml:"ca_file"`
}

// Role is what people may do.
type Role string

// Roles.
const (
	ReadOnly Role = "read-only"
	Operator Role = "operator"
)

// Values implements config.Enum.
func (Role) Values() []string { return []string{string(ReadOnly), string(Operator)} }

// Defaults are those of the configuration.
func Defaults() Config {
	return Config{
		Session: Session{Idle: 2 * time.Hour, Lifetime: 12 * time.Hour},
		OIDC:    OIDC{Scopes: []string{"profile", "email"}, NameClaim: "preferred_username", RoleClaim: "groups"},
	}
}

// guarded tells whether people have to log in.
func (c Config) guarded() bool { return len(c.Users) > 0 || c.OIDC.Issuer != "" }

var userForm = regexp.MustCompile(`^[\w.@+-]{1,128}$`)

// Bounds on hashes: a login must not cost more memory or time than a server has.
const (
	maxHashMemory     = 1 << 20 // KiB
	maxHashIterations = 64
)

// Validate reports every problem, each with the key to change.
func (c Config) Validate() error {
	var p config.Problems
	if c.Address != "" {
		host, _, err := net.SplitHostPort(c.Address)
		p.Need(err == nil, "address", "use host:port, e.g. 127.0.0.1:9180")
		p.Need(err != nil || c.guarded() || httpserver.Loopback(host), "address",
			"others reach this address, and nobody has to log in: add users (make hashes with: penstock console hash) or oidc, or use a loopback address, e.g. 127.0.0.1:9180")
	}
	c.TLS.Problems(&p)
	names := map[string]bool{}
	for i, u := range c.Users {
		key := fmt.Sprintf("users[%d]", i)
		p.Need(userForm.MatchString(u.Name), key+".name", "use 1 to 128 letters, digits and . _ @ + -")
		p.Need(!names[u.Name], key+".name", "give each user a name of its own")
		names[u.Name] = true
		params, _, _, err := argon2id.DecodeHash(u.PasswordHash.Reveal())
		p.Need(err == nil, key+".password_hash", "use an argon2id hash; make one with: penstock console hash")
		p.Need(err != nil || params.Memory <= maxHashMemory && params.Iterations <= maxHashIterations && params.Iterations > 0 && params.Parallelism > 0,
			key+".password_hash", "use a hash of at most 1 GiB and 64 rounds; make one with: penstock console hash")
	}
	p.Need(c.Session.Idle >= time.Minute, "session.idle", "use 1m or more")
	p.Need(c.Session.Lifetime >= c.Session.Idle, "session.lifetime", "use session.idle or more")
	for i, s := range c.TrustedProxies {
		_, err := httpserver.Network(s)
		p.Need(err == nil, fmt.Sprintf("trusted_proxies[%d]", i), "use an address or a network, e.g. 192.0.2.0/24")
	}
	if c.OIDC.Issuer != "" {
		c.OIDC.problems(&p)
	}
	return p.Err()
}

func (o OIDC) problems(p *config.Problems) {
	p.Need(webAddress(o.Issuer), "oidc.issuer", "use the URL of the provider with https, e.g. https://login.example.com/realms/main")
	p.Need(o.ClientID != "", "oidc.client_id", "set the id that the provider gave the console")
	p.Need(webAddress(o.URL), "oidc.url", "set the URL of the console as browsers see it, e.g. https://penstock.example.com")
	p.Need(o.NameClaim != "", "oidc.name_claim", "name the claim with the name of people, e.g. preferred_username")
	p.Need(len(o.Operators)+len(o.ReadOnly) > 0, "oidc.operators", "say by operators and read_only who gets in: values of the claim role_claim")
	p.Need(o.RoleClaim != "", "oidc.role_claim", "name the claim that decides the role, e.g. groups")
	if o.CAFile != "" {
		_, err := readPool(o.CAFile)
		p.Need(err == nil, "oidc.ca_file", "name a file with certificates as PEM that this user may read")
	}
}

// webAddress tells whether s is a URL with https; on this machine http will do.
func webAddress(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "" &&
		(u.Scheme == "https" || u.Scheme == "http" && httpserver.Loopback(u.Hostname()))
}

func readPool(path string) (*x509.CertPool, error) {
	pem, err := readSmall(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("no certificate in %s", path)
	}
	return pool, nil
}
