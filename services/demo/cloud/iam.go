package cloud

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"
)

// User is an identity with a key pair of its own.
type User struct {
	// AccessKey is the id of its key pair. Required.
	AccessKey string
	// Name within the account. Empty: the access key.
	Name string
	// Policy is its IAM policy, as JSON. Empty allows everything.
	Policy string
}

// Role can be assumed.
type Role struct {
	// ARN of the role. Required.
	ARN string
	// Trusts are the ARNs, with * for any text, of who may assume it: users, and
	// roles by their own ARN. Empty trusts everybody.
	Trusts []string
	// ExternalID that has to be sent along. Empty asks for none.
	ExternalID string
	// WebIdentity is the token for AssumeRoleWithWebIdentity. Empty takes none.
	WebIdentity string
	// Policy is its IAM policy, as JSON. Empty allows everything.
	Policy string
	// Life of its sessions, in place of what the caller asks for. Unit: duration.
	Life time.Duration
}

// caller is who signed a request.
type caller struct {
	arn, id, account string
	// source is the ARN that trust policies name: of a session, its role.
	source  string
	policy  *policy // nil allows everything
	session bool
}

// session is what AssumeRole gave out.
type session struct {
	caller
	token string
	ends  time.Time
}

// access knows identities, roles and sessions.
type access struct {
	mu       sync.RWMutex
	users    map[string]caller
	roles    map[string]Role
	policies map[string]*policy // of roles
	sessions map[string]session
}

// PutUser adds or replaces a user. Keys of nobody belong to a user of the same
// name who may do everything. It fails with demo.refused for a policy that is none.
func (c *Cloud) PutUser(u User) error {
	p, err := parsePolicy(u.Policy)
	if err != nil {
		return errRefused.New(err, "put user %s", u.AccessKey)
	}
	who := plainUser(u.AccessKey)
	if u.Name != "" {
		who.arn = userARN(u.Name)
		who.source = who.arn
	}
	who.policy = p
	c.iam.mu.Lock()
	defer c.iam.mu.Unlock()
	if c.iam.users == nil {
		c.iam.users = map[string]caller{}
	}
	c.iam.users[u.AccessKey] = who
	return nil
}

// PutRole adds or replaces a role, with effect on its sessions too. As long as
// there is none, every role can be assumed by everybody. It fails with demo.refused
// for a policy that is none.
func (c *Cloud) PutRole(r Role) error {
	p, err := parsePolicy(r.Policy)
	if err != nil {
		return errRefused.New(err, "put role %s", r.ARN)
	}
	c.iam.mu.Lock()
	defer c.iam.mu.Unlock()
	if c.iam.roles == nil {
		c.iam.roles, c.iam.policies = map[string]Role{}, map[string]*policy{}
	}
	c.iam.roles[r.ARN], c.iam.policies[r.ARN] = r, p
	return nil
}

func userARN(name string) string { return "arn:aws:iam::" + AccountID + ":user/" + name }

func plainUser(key string) caller {
	return caller{arn: userARN(key), source: userARN(key), id: "AIDA" + strings.TrimPrefix(key, "AKIA"), account: AccountID}
}

// keyOf is the access key id that a request is signed with, "" when it is not.
func keyOf(r *http.Request) string {
	scope := r.URL.Query().Get("X-Amz-Credential")
	if auth := r.Header.Get("Authorization"); auth != "" {
		_, scope, _ = strings.Cut(auth, "Credential=")
	}
	key, _, _ := strings.Cut(scope, "/")
	return key
}

// caller finds who signed r.
func (c *Cloud) caller(r *http.Request) caller {
	key := keyOf(r)
	c.iam.mu.RLock()
	defer c.iam.mu.RUnlock()
	if s, ok := c.iam.sessions[key]; ok {
		s.policy = c.iam.policies[s.source]
		return s.caller
	}
	if u, ok := c.iam.users[key]; ok {
		return u
	}
	return plainUser(key)
}

// current refuses a session that has ended or whose token is not the one it came
// with. Source: Amazon S3 API Reference, error responses; IAM common errors.
func (c *Cloud) current(r *http.Request, service string) *apiError {
	key := keyOf(r)
	token := r.Header.Get("X-Amz-Security-Token")
	if token == "" {
		token = r.URL.Query().Get("X-Amz-Security-Token")
	}
	c.iam.mu.RLock()
	s, known := c.iam.sessions[key]
	c.iam.mu.RUnlock()
	switch {
	case known && s.token == token && time.Now().Before(s.ends), !known && !strings.HasPrefix(key, "ASIA-"):
		return nil
	case known && s.token == token && service == "s3":
		return &apiError{status: http.StatusBadRequest, code: "ExpiredToken", message: "The provided token has expired."}
	case known && s.token == token:
		return &apiError{status: http.StatusForbidden, code: "ExpiredTokenException", query: "ExpiredToken", message: "The security token included in the request is expired"}
	case service == "s3":
		return &apiError{status: http.StatusBadRequest, code: "InvalidToken", message: "The provided token is malformed or otherwise invalid."}
	}
	return &apiError{status: http.StatusForbidden, code: "InvalidClientTokenId", message: "The security token included in the request is invalid."}
}

// authorize asks the policy of who whether it allows an action on a resource.
func (c *Cloud) authorize(who caller, action, resource string, context ...string) *apiError {
	ctx := map[string]string{}
	for i := 0; i+1 < len(context); i += 2 {
		ctx[context[i]] = context[i+1]
	}
	allowed, explicit := who.policy.allows(action, resource, ctx)
	if allowed {
		return nil
	}
	why := "because no identity-based policy allows the " + action + " action"
	if explicit {
		why = "with an explicit deny in an identity-based policy"
	}
	return &apiError{
		status: http.StatusForbidden, code: "AccessDenied",
		message: "User: " + who.arn + " is not authorized to perform: " + action + " on resource: \"" + resource + "\" " + why,
	}
}

// policy is an identity-based IAM policy: the part of the language that the
// policies of penstock need. What it does not know it refuses to read.
// Source: IAM User Guide, policy evaluation logic.
type policy struct {
	Version   string      `json:"Version"`
	ID        string      `json:"Id,omitempty"`
	Statement []statement `json:"Statement"`
}

type statement struct {
	Sid       string                          `json:"Sid,omitempty"`
	Effect    string                          `json:"Effect"`
	Action    oneOrMany                       `json:"Action"`
	Resource  oneOrMany                       `json:"Resource"`
	Condition map[string]map[string]oneOrMany `json:"Condition,omitempty"`
}

// oneOrMany is a text or a list of them.
type oneOrMany []string

// UnmarshalJSON implements json.Unmarshaler.
func (m *oneOrMany) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*m = oneOrMany{one}
		return nil
	}
	var many []string
	if err := json.Unmarshal(b, &many); err != nil {
		return err
	}
	*m = many
	return nil
}

func parsePolicy(text string) (*policy, error) {
	if text == "" {
		return nil, nil
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	p := &policy{}
	if err := d.Decode(p); err != nil {
		return nil, err
	}
	bad := func(why string) error {
		return &apiError{status: http.StatusBadRequest, code: "MalformedPolicyDocument", message: why}
	}
	if p.Version != "2012-10-17" || len(p.Statement) == 0 {
		return nil, bad("a policy has version 2012-10-17 and a statement")
	}
	for _, s := range p.Statement {
		if s.Effect != "Allow" && s.Effect != "Deny" || len(s.Action) == 0 || len(s.Resource) == 0 {
			return nil, bad("a statement has effect, action and resource")
		}
		for operator := range s.Condition {
			if operator != "StringEquals" && operator != "StringLike" {
				return nil, bad("unknown condition " + operator)
			}
		}
	}
	return p, nil
}

// allows reports whether the policy allows the action, and if not, whether it
// says so itself. A nil policy allows everything.
func (p *policy) allows(action, resource string, ctx map[string]string) (allowed, denied bool) {
	if p == nil {
		return true, false
	}
	for _, s := range p.Statement {
		if !s.applies(action, resource, ctx) {
			continue
		}
		if s.Effect == "Deny" {
			return false, true
		}
		allowed = true
	}
	return allowed, false
}

func (s *statement) applies(action, resource string, ctx map[string]string) bool {
	if !s.Action.match(strings.ToLower(action), strings.ToLower) || !s.Resource.match(resource, func(s string) string { return s }) {
		return false
	}
	for operator, keys := range s.Condition {
		for key, values := range keys {
			have, there := ctx[key]
			same := func(want string) bool { return want == have }
			if operator == "StringLike" {
				same = func(want string) bool { return like(want, have) }
			}
			met := false
			for _, v := range values {
				met = met || there && same(v)
			}
			if !met {
				return false
			}
		}
	}
	return true
}

func (m oneOrMany) match(s string, form func(string) string) bool {
	for _, pattern := range m {
		if like(form(pattern), s) {
			return true
		}
	}
	return false
}

// like matches * for any text and ? for one character.
func like(pattern, s string) bool {
	p, i, star, from := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			from++
			p, i = star+1, from
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// services are the prefixes of IAM actions where they differ from what requests
// are signed for.
var services = map[string]string{"monitoring": "cloudwatch"}

// mayAPI asks the policy of the caller about a call to one of the other APIs. About
// is what the call is about, as far as the emulation knows it.
// Source: Service Authorization Reference.
func (c *Cloud) mayAPI(r *http.Request, scope, op, region, about string) *apiError {
	service := scope
	if s := services[scope]; s != "" {
		service = s
	}
	resource := "*"
	switch {
	case service == "logs":
		resource = "arn:aws:logs:" + region + ":" + AccountID + ":log-group:" + about + ":*"
	case service == "guardduty" && op != "ListDetectors":
		resource = "arn:aws:guardduty:" + region + ":" + AccountID + ":detector/" + about
	}
	return c.authorize(c.caller(r), service+":"+op, resource)
}
