package sources

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/config"
	"github.com/penstock/penstock/services/internal/httpserver"
)

var (
	errHTTPToken = fault.Define("ingest.http_token_missing", fault.Reject,
		"have the sender send its token, or list other ways to prove itself under auth")
	errHTTPAuthorization = fault.Define("ingest.http_authorization_malformed", fault.Reject,
		"have the sender write the header as the endpoint's kind wants it: Authorization: Bearer <token>, or Splunk <token>")
	errHTTPUnknownToken = fault.Define("ingest.http_token_unknown", fault.Reject,
		"give the sender a token, user or secret that is listed under auth; if the sender is not yours, leave it")
	errHTTPSignature = fault.Define("ingest.http_signature_wrong", fault.Reject,
		"use the same secret at both ends, and let no proxy change bodies; if the sender is not yours, leave it")
	errHTTPSignatureAge = fault.Define("ingest.http_signature_old", fault.Reject,
		"set the clocks of both ends right; if they are, somebody may be repeating an old request")
	errHTTPAddress = fault.Define("ingest.http_address_not_allowed", fault.Reject,
		"add the sender's network to auth.allow_ips, or the proxy before penstock to trusted_proxies")
	errHTTPSubject = fault.Define("ingest.http_certificate_not_allowed", fault.Reject,
		"add the subject of the client's certificate to auth.client_subjects")
	errHTTPQueryToken = fault.Define("ingest.http_query_token", fault.Reject,
		"have the sender send its token in the header, or set query_token of the endpoint")
)

// AuthMode says whether senders must prove anything.
type AuthMode string

// The modes.
const (
	// AuthAny: one of the proofs that are configured is enough.
	AuthAny AuthMode = "any"
	// AuthAll: every kind of proof that is configured is needed.
	AuthAll AuthMode = "all"
	// AuthNone: none is needed.
	AuthNone AuthMode = "none"
)

// Values implements config.Enum.
func (AuthMode) Values() []string {
	return []string{string(AuthAny), string(AuthAll), string(AuthNone)}
}

// HTTPAuth says who may send. Several secrets of a kind are good at the same
// time, so that they can be replaced one after the other.
type HTTPAuth struct {
	// Mode is any when one kind of proof of those configured is enough, all when
	// each is needed, and none for no proof; then `auth: none` is enough.
	Mode AuthMode `yaml:"mode,scalar"`
	// Tokens are accepted as "Authorization: Bearer <token>", for splunk_hec as
	// "Splunk <token>" and as the password of any user, and where {token} stands in
	// the path.
	Tokens []HTTPToken `yaml:"tokens"`
	// TokenHeader is another header for tokens, which then holds nothing else, e.g.
	// X-Api-Key.
	TokenHeader string `yaml:"token_header"`
	// Basic are the users of basic authentication.
	Basic []HTTPUser `yaml:"basic"`
	// Signatures are ways to sign bodies.
	Signatures []HTTPSignature `yaml:"signatures"`
	// ClientSubjects are patterns with * and ? of the names in client certificates:
	// the whole subject (CN=web-1,O=Example), its common name, or one of its DNS
	// names, URIs or e-mail addresses.
	ClientSubjects []string `yaml:"client_subjects"`
	// AllowIPs are the addresses and networks that may send at all, beside their
	// proof. Empty: all. X-Forwarded-For counts only from trusted_proxies.
	AllowIPs []string `yaml:"allow_ips"`
}

// HTTPToken is a token.
type HTTPToken struct {
	// Token itself.
	Token config.Secret `yaml:"token,scalar"`
	// Name of the sender, for metrics and rates. Tokens of one sender have the same.
	Name string `yaml:"name"`
	// Account of records that come with the token and do not tell theirs.
	Account string `yaml:"account"`
}

// HTTPUser is a user of basic authentication.
type HTTPUser struct {
	// Username of the sender.
	Username string `yaml:"username"`
	// Password of the sender.
	Password config.Secret `yaml:"password"`
	// Account of records that come from the user and do not tell theirs.
	Account string `yaml:"account"`
}

// SignatureScheme is a way to sign bodies.
type SignatureScheme string

// The schemes.
const (
	// SignHMAC is set up by the other keys.
	SignHMAC SignatureScheme = "hmac"
	// SignGitHub is the header X-Hub-Signature-256.
	SignGitHub SignatureScheme = "github"
	// SignStandard is Standard Webhooks.
	SignStandard SignatureScheme = "standard_webhooks"
)

// Values implements config.Enum.
func (SignatureScheme) Values() []string {
	return []string{string(SignHMAC), string(SignGitHub), string(SignStandard)}
}

// SignatureEncoding is how a signature is written.
type SignatureEncoding string

// The encodings.
const (
	SignHex    SignatureEncoding = "hex"
	SignBase64 SignatureEncoding = "base64"
)

// Values implements config.Enum.
func (SignatureEncoding) Values() []string { return []string{string(SignHex), string(SignBase64)} }

// HTTPSignature is a way to sign bodies: HMAC-SHA256 over the body as sent.
type HTTPSignature struct {
	// Scheme: github (X-Hub-Signature-256), standard_webhooks (webhook-id,
	// webhook-timestamp and webhook-signature), or hmac with the keys below.
	Scheme SignatureScheme `yaml:"scheme"`
	// Secrets that are good. Those of standard_webhooks begin with whsec_ and are base64.
	Secrets []config.Secret `yaml:"secrets"`
	// Name of the sender, for metrics and rates.
	Name string `yaml:"name"`
	// Tolerance is how far a timestamp may be from now. Unit: duration.
	Tolerance time.Duration `yaml:"tolerance"`
	// Header of the signature, for hmac.
	Header string `yaml:"header"`
	// Prefix of the signature, for hmac, e.g. "sha256=".
	Prefix string `yaml:"prefix"`
	// Encoding of the signature, for hmac: hex or base64.
	Encoding SignatureEncoding `yaml:"encoding"`
	// TimestampHeader holds seconds since 1970, for hmac. Empty: none, and old
	// requests can be repeated.
	TimestampHeader string `yaml:"timestamp_header"`
	// Before is what is signed before the body, for hmac; {timestamp} stands for the
	// timestamp, as in "v0:{timestamp}:". Empty: "{timestamp}." where there is one.
	Before string `yaml:"before"`
}

// SetDefaults implements config.Defaulter.
func (s *HTTPSignature) SetDefaults() {
	s.Scheme, s.Tolerance, s.Encoding = SignHMAC, 5*time.Minute, SignHex
}

// decided tells whether it is said who may send.
func (a HTTPAuth) decided() bool {
	return a.Mode == AuthNone || len(a.Tokens)+len(a.Basic)+len(a.Signatures)+len(a.ClientSubjects) > 0
}

// Validate reports every problem, each with the key to change.
func (a HTTPAuth) Validate() error {
	var p config.Problems
	at := func(list string, i int, key string) string { return list + "[" + strconv.Itoa(i) + "]" + key }
	p.Need(a.Mode == "" || a.Mode == AuthAny || a.Mode == AuthAll || a.Mode == AuthNone, "mode", "use any, all or none")
	p.Need(a.Mode != AuthNone || len(a.Tokens)+len(a.Basic)+len(a.Signatures)+len(a.ClientSubjects) == 0, "mode",
		"use any or all, or remove the tokens, users, signatures and subjects that nobody would ask for")
	for i, t := range a.Tokens {
		p.Need(!t.Token.IsZero() && httpguts.ValidHeaderFieldValue(t.Token.Reveal()) && strings.TrimSpace(t.Token.Reveal()) == t.Token.Reveal(),
			at("tokens", i, ".token"), "use one line of text without space around it; a secret from a file may end in a line break too many")
		p.Need(len(t.Name) <= 64, at("tokens", i, ".name"), "use up to 64 bytes")
		p.Need(len(t.Account) <= 128, at("tokens", i, ".account"), "use up to 128 bytes")
	}
	p.Need(a.TokenHeader == "" || httpguts.ValidHeaderFieldName(a.TokenHeader), "token_header", "use the name of a header, e.g. X-Api-Key")
	for i, u := range a.Basic {
		p.Need(u.Username != "" && !strings.Contains(u.Username, ":") && len(u.Username) <= 64, at("basic", i, ".username"), "use a name of up to 64 bytes without a colon")
		p.Need(!u.Password.IsZero(), at("basic", i, ".password"), "set the password")
		p.Need(len(u.Account) <= 128, at("basic", i, ".account"), "use up to 128 bytes")
	}
	for i, s := range a.ClientSubjects {
		p.Need(s != "", at("client_subjects", i, ""), "write a name or a pattern, or leave the entry out")
	}
	for i, s := range a.AllowIPs {
		_, err := httpserver.Network(s)
		p.Need(err == nil, at("allow_ips", i, ""), "use an address or a network, e.g. 192.0.2.0/24")
	}
	return p.Err()
}

// Validate reports every problem, each with the key to change.
func (s HTTPSignature) Validate() error {
	var p config.Problems
	p.Need(s.Scheme == SignHMAC || s.Scheme == SignGitHub || s.Scheme == SignStandard, "scheme", "use hmac, github or standard_webhooks")
	p.Need(len(s.Secrets) > 0 && len(s.Secrets) <= 8, "secrets", "list 1 to 8 secrets")
	for i, secret := range s.Secrets {
		_, ok := s.key(secret)
		p.Need(ok, "secrets["+strconv.Itoa(i)+"]", "use a text; for standard_webhooks whsec_ and base64")
	}
	p.Need(len(s.Name) <= 64, "name", "use up to 64 bytes")
	p.Need(s.Tolerance > 0 && s.Tolerance <= 24*time.Hour, "tolerance", "use a duration above 0s and up to 24h, e.g. 5m")
	p.Need(s.Encoding == SignHex || s.Encoding == SignBase64, "encoding", "use hex or base64")
	own := s.Scheme == SignHMAC
	p.Need(!own || httpguts.ValidHeaderFieldName(s.Header), "header", "name the header of the signature, e.g. X-Signature")
	p.Need(s.TimestampHeader == "" || own && httpguts.ValidHeaderFieldName(s.TimestampHeader), "timestamp_header", "name a header, with scheme hmac only")
	p.Need(s.Before == "" || own, "before", "leave it out: the scheme says what is signed")
	p.Need(!strings.Contains(s.Before, "{timestamp}") || s.TimestampHeader != "", "timestamp_header", "name the header of the timestamp that is signed")
	return p.Err()
}

func (s HTTPSignature) key(secret config.Secret) ([]byte, bool) {
	text := secret.Reveal()
	if s.Scheme != SignStandard {
		return []byte(text), text != ""
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whsec_"))
	return key, err == nil && len(key) > 0
}

// httpCaller is who sends a request, as far as it is known.
type httpCaller struct{ name, account string }

// httpGate lets callers in.
type httpGate struct {
	mode     AuthMode
	ips      []netip.Prefix
	header   string // "" for Authorization
	tokens   []httpCredential
	users    []httpCredential
	signers  []httpSigner
	subjects patterns
}

// httpCredential is a secret as its hash: all of one length, so that comparing takes
// the same time whatever is presented.
type httpCredential struct {
	sum    [sha256.Size]byte
	caller httpCaller
}

func newHTTPGate(a HTTPAuth) *httpGate {
	g := &httpGate{mode: a.Mode, ips: httpserver.Networks(a.AllowIPs), header: a.TokenHeader, subjects: a.ClientSubjects}
	if len(a.Tokens)+len(a.Basic)+len(a.Signatures)+len(a.ClientSubjects) == 0 {
		g.mode = AuthNone // on the loopback interface, see Validate
	}
	for _, t := range a.Tokens {
		g.tokens = append(g.tokens, httpCredential{sha256.Sum256([]byte(t.Token.Reveal())), httpCaller{"token:" + t.Name, t.Account}})
	}
	for _, u := range a.Basic {
		g.users = append(g.users, httpCredential{sha256.Sum256([]byte(u.Username + ":" + u.Password.Reveal())), httpCaller{"user:" + u.Username, u.Account}})
	}
	for _, s := range a.Signatures {
		g.signers = append(g.signers, newHTTPSigner(s))
	}
	return g
}

// httpFind compares with every credential, whichever is the right one.
func httpFind(list []httpCredential, secret string) (httpCaller, bool) {
	sum := sha256.Sum256([]byte(secret))
	at := -1
	for i := range list {
		if subtle.ConstantTimeCompare(sum[:], list[i].sum[:]) == 1 {
			at = i
		}
	}
	if at < 0 {
		return httpCaller{}, false
	}
	return list[at].caller, true
}

// httpProofs are the answers of the kinds of proof that a gate asks for.
type httpProofs struct {
	who          httpCaller
	asked, given int
	refused      error
	pending      *httpSigned
}

func (p *httpProofs) good(who httpCaller) {
	if p.given == 0 {
		p.who = who
	}
	p.given++
}

func (p *httpProofs) bad(err error) {
	if p.refused == nil {
		p.refused = err
	}
}

// admit checks all that the header of a request proves. A signature that is yet
// to be compared comes back; nothing is stored before it is.
func (g *httpGate) admit(r *http.Request, e *httpEndpoint, pathToken string, ip netip.Addr, now time.Time) (httpCaller, *httpSigned, error) {
	if len(g.ips) > 0 && !httpserver.Within(g.ips, ip) {
		return httpCaller{}, nil, errHTTPAddress.New(nil, "admit a request from %s", ip)
	}
	if g.mode == AuthNone {
		return httpCaller{name: "ip:" + ip.String()}, nil, nil
	}
	var p httpProofs
	if len(g.tokens) > 0 {
		p.asked++
		g.token(&p, r, e, pathToken)
	}
	if len(g.users) > 0 {
		p.asked++
		if user, password, ok := r.BasicAuth(); ok {
			if who, known := httpFind(g.users, user+":"+password); known {
				p.good(who)
			} else {
				p.bad(errHTTPUnknownToken.New(nil, "admit a user"))
			}
		}
	}
	if len(g.subjects) > 0 {
		p.asked++
		g.certificate(&p, r)
	}
	if len(g.signers) > 0 {
		p.asked++
		for i := range g.signers {
			sig, err := g.signers[i].begin(r, now)
			if err != nil {
				p.bad(err)
			}
			if sig != nil && p.pending == nil {
				p.pending = sig
			}
		}
	}
	need := 1
	if g.mode == AuthAll {
		need = p.asked
	}
	switch {
	case p.given >= need:
		return p.who, nil, nil
	case p.pending != nil && p.given+1 >= need:
		if p.given == 0 {
			p.who = p.pending.who
		}
		return p.who, p.pending, nil
	case p.refused != nil:
		return httpCaller{}, nil, p.refused
	}
	return httpCaller{}, nil, errHTTPToken.New(nil, "admit a request")
}

// token looks for a token in the path, the header, and what Splunk takes.
func (g *httpGate) token(p *httpProofs, r *http.Request, e *httpEndpoint, pathToken string) {
	token, ok := pathToken, pathToken != ""
	header := r.Header.Get("Authorization")
	hec := e.Kind == HTTPHEC
	switch {
	case ok:
	case g.header != "":
		token = r.Header.Get(g.header)
		ok = token != ""
	case header != "":
		scheme, rest, _ := strings.Cut(header, " ")
		rest = strings.TrimSpace(rest)
		switch {
		case hec && strings.EqualFold(scheme, "Splunk"), !hec && strings.EqualFold(scheme, "Bearer"):
			token, ok = rest, rest != ""
		case strings.EqualFold(scheme, "Basic") && (hec || len(g.users) > 0):
			_, password, basic := r.BasicAuth()
			if !basic {
				p.bad(errHTTPAuthorization.New(nil, "read the header Authorization"))
			}
			if token, ok = password, basic && hec; len(g.users) > 0 {
				if _, known := httpFind(g.tokens, token); !known {
					return // the user's own password, perhaps
				}
			}
		}
		if !ok {
			p.bad(errHTTPAuthorization.New(nil, "read the header Authorization"))
			return
		}
	case hec:
		if token = r.URL.Query().Get("token"); token == "" {
			return
		}
		if _, known := httpFind(g.tokens, token); known && !e.QueryToken {
			p.bad(errHTTPQueryToken.New(nil, "admit a request"))
			return
		}
		ok = true
	}
	if !ok {
		return
	}
	if who, known := httpFind(g.tokens, token); known {
		p.good(who)
		return
	}
	p.bad(errHTTPUnknownToken.New(nil, "admit a token"))
}

func (g *httpGate) certificate(p *httpProofs, r *http.Request) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return
	}
	leaf := r.TLS.VerifiedChains[0][0]
	for _, name := range namesInCertificate(leaf) {
		if g.subjects.match(name) {
			p.good(httpCaller{name: "cert:" + name})
			return
		}
	}
	p.bad(errHTTPSubject.New(nil, "admit the certificate of %.200q", leaf.Subject.String()))
}

// namesInCertificate returns all names that a certificate vouches for.
func namesInCertificate(c *x509.Certificate) []string {
	names := []string{c.Subject.String()}
	if c.Subject.CommonName != "" {
		names = append(names, c.Subject.CommonName)
	}
	names = append(append(names, c.DNSNames...), c.EmailAddresses...)
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// httpSigner checks one way of signing. Sources: GitHub, validating webhook
// deliveries; Standard Webhooks specification 1.0.
type httpSigner struct {
	HTTPSignature
	keys [][]byte
}

func newHTTPSigner(c HTTPSignature) httpSigner {
	s := httpSigner{HTTPSignature: c}
	for _, secret := range c.Secrets {
		key, _ := s.key(secret)
		s.keys = append(s.keys, key)
	}
	switch c.Scheme {
	case SignGitHub:
		s.Header, s.Prefix, s.Encoding = "X-Hub-Signature-256", "sha256=", SignHex
	case SignStandard:
		s.Header, s.Encoding, s.TimestampHeader = "Webhook-Signature", SignBase64, "Webhook-Timestamp"
	case SignHMAC:
		if s.Before == "" && s.TimestampHeader != "" {
			s.Before = "{timestamp}."
		}
	}
	return s
}

// httpSigned is one under way: the body has yet to be read.
type httpSigned struct {
	who  httpCaller
	macs []hash.Hash
	want [][]byte
}

// maxHTTPSignatures bounds those that a request may bring, as for several keys.
const maxHTTPSignatures = 8

// begin returns nil when the request is not signed in this way.
func (s *httpSigner) begin(r *http.Request, now time.Time) (*httpSigned, error) {
	value := r.Header.Get(s.Header)
	if value == "" {
		return nil, nil
	}
	before := s.Before
	if s.TimestampHeader != "" {
		stamp := r.Header.Get(s.TimestampHeader)
		n, err := strconv.ParseInt(stamp, 10, 64)
		if err != nil || len(stamp) > 15 {
			return nil, errHTTPSignature.New(nil, "read the timestamp of a signature")
		}
		if off := now.Sub(time.Unix(n, 0)); off > s.Tolerance || off < -s.Tolerance {
			return nil, errHTTPSignatureAge.New(nil, "accept a signature that is %s off", off.Round(time.Second))
		}
		before = strings.ReplaceAll(before, "{timestamp}", stamp)
		if s.Scheme == SignStandard {
			before = r.Header.Get("Webhook-Id") + "." + stamp + "."
		}
	}
	sig := &httpSigned{who: httpCaller{name: "signature:" + s.Name}}
	values := []string{value}
	if s.Scheme == SignStandard {
		values = strings.Fields(value)
	}
	for _, v := range values[:min(len(values), maxHTTPSignatures)] {
		prefix := s.Prefix
		if s.Scheme == SignStandard {
			prefix = "v1,"
		}
		v, ok := strings.CutPrefix(v, prefix)
		if !ok {
			continue
		}
		var sum []byte
		var err error
		if s.Encoding == SignBase64 {
			sum, err = base64.StdEncoding.DecodeString(v)
		} else {
			sum, err = hex.DecodeString(v)
		}
		if err == nil && len(sum) == sha256.Size {
			sig.want = append(sig.want, sum)
		}
	}
	if len(sig.want) == 0 {
		return nil, errHTTPSignature.New(nil, "read a signature")
	}
	for _, key := range s.keys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(before))
		sig.macs = append(sig.macs, mac)
	}
	return sig, nil
}

// Write implements io.Writer: it takes the body as sent.
func (s *httpSigned) Write(p []byte) (int, error) {
	for _, m := range s.macs {
		m.Write(p)
	}
	return len(p), nil
}

// check compares, once the whole body was written.
func (s *httpSigned) check() error {
	good := false
	for _, m := range s.macs {
		sum := m.Sum(nil)
		for _, want := range s.want {
			good = hmac.Equal(sum, want) || good
		}
	}
	if !good {
		return errHTTPSignature.New(nil, "compare the signature with the body")
	}
	return nil
}
