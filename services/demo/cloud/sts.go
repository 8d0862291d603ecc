package cloud

import (
	"bytes"
	"encoding/xml"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// stsVersion tells calls of STS from those of other services with the Query
// protocol. Source: AWS Security Token Service API Reference.
const stsVersion = "2011-06-15"

// forSTS returns the parameters of r when it is a call of STS. It leaves the body
// as it was.
func forSTS(r *http.Request) (url.Values, bool) {
	if r.Method != http.MethodPost || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		return nil, false
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), r.Body))
	form, parseErr := url.ParseQuery(string(body))
	return form, err == nil && parseErr == nil && form.Get("Version") == stsVersion
}

func (c *Cloud) serveSTS(w http.ResponseWriter, r *http.Request, form url.Values) {
	op := form.Get("Action")
	request := uuid()
	w.Header().Set("Content-Type", "text/xml")
	w.Header().Set("X-Amzn-Requestid", request)
	// The token of a web identity is all that its owner has.
	if op != "AssumeRoleWithWebIdentity" {
		if e := c.credential(r, "sts"); e != nil {
			writeQueryError(w, e, request)
			return
		}
	}
	f, e, ok := c.suffer(r.Context(), op, form.Get("RoleArn"), "")
	if !ok {
		if e == nil {
			panic(http.ErrAbortHandler)
		}
		writeQueryError(w, e, request)
		return
	}
	w, finish := cut(w, f)
	defer finish()
	var result any
	switch op {
	case "GetCallerIdentity":
		who := c.caller(r)
		result = struct {
			XMLName              xml.Name `xml:"GetCallerIdentityResult"`
			Arn, UserId, Account string   //nolint:revive // the names of the protocol
		}{Arn: who.arn, UserId: who.id, Account: who.account}
	case "AssumeRole", "AssumeRoleWithWebIdentity":
		result, e = c.assume(c.caller(r), op, form)
	default:
		e = &apiError{status: http.StatusBadRequest, code: "InvalidAction", message: "Could not find operation " + op + " for version " + stsVersion}
	}
	if e != nil {
		writeQueryError(w, e, request)
		return
	}
	inner, err := xml.Marshal(result)
	if err != nil {
		panic(err) // only strings are given to it
	}
	_, _ = io.WriteString(w, "<"+op+`Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/">`+string(inner)+
		"<ResponseMetadata><RequestId>"+request+"</RequestId></ResponseMetadata></"+op+"Response>")
}

type assumed struct {
	XMLName     xml.Name
	Credentials struct {
		AccessKeyId, SecretAccessKey, SessionToken, Expiration string //nolint:revive // the names of the protocol
	}
	AssumedRoleUser struct {
		Arn, AssumedRoleId string //nolint:revive // the names of the protocol
	}
	SubjectFromWebIdentityToken string `xml:",omitempty"`
}

// maxChained is how long a session may last that another session asked for.
const maxChained = 3600

func (c *Cloud) assume(who caller, op string, form url.Values) (*assumed, *apiError) {
	arn, name := form.Get("RoleArn"), form.Get("RoleSessionName")
	account, role, isRole := roleOf(arn)
	seconds := 3600
	if d := form.Get("DurationSeconds"); d != "" {
		n, err := strconv.Atoi(d)
		if err != nil || n < 900 || n > 43_200 {
			return nil, &apiError{status: http.StatusBadRequest, code: "ValidationError", message: "DurationSeconds is not between 900 and 43200"}
		}
		seconds = n
	}
	switch {
	case !isRole || len(name) < 2:
		return nil, &apiError{status: http.StatusBadRequest, code: "ValidationError", message: "RoleArn or RoleSessionName is invalid"}
	case who.session && op == "AssumeRole" && seconds > maxChained:
		return nil, &apiError{status: http.StatusBadRequest, code: "ValidationError", message: "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining"}
	}
	c.iam.mu.Lock()
	defer c.iam.mu.Unlock()
	r, known := c.iam.roles[arn]
	token := form.Get("WebIdentityToken")
	switch {
	case len(c.iam.roles) == 0: // no roles were made: all are there
	case op == "AssumeRoleWithWebIdentity" && known && r.WebIdentity != "" && token != r.WebIdentity:
		return nil, &apiError{status: http.StatusBadRequest, code: "InvalidIdentityToken", message: "The web identity token that was passed could not be validated"}
	case op == "AssumeRoleWithWebIdentity" && (!known || r.WebIdentity == ""):
		return nil, &apiError{status: http.StatusForbidden, code: "AccessDenied", message: "Not authorized to perform sts:AssumeRoleWithWebIdentity"}
	case op == "AssumeRole" && (!known || !trusts(r.Trusts, who.source) || r.ExternalID != form.Get("ExternalId")):
		return nil, &apiError{status: http.StatusForbidden, code: "AccessDenied", message: "User: " + who.arn + " is not authorized to perform: sts:AssumeRole on resource: " + arn}
	}
	life := time.Duration(seconds) * time.Second
	if r.Life > 0 {
		life = r.Life
	}
	s := session{
		caller: caller{
			arn: "arn:aws:sts::" + account + ":assumed-role/" + role + "/" + name, source: arn,
			id: "AROA" + strings.ToUpper(role) + ":" + name, account: account, session: true,
		},
		token: uuid(), ends: time.Now().Add(life),
	}
	// Sessions that are over are kept for as long again, so that they are known.
	maps.DeleteFunc(c.iam.sessions, func(_ string, old session) bool { return time.Since(old.ends) > max(time.Hour, life) })
	key := "ASIA-" + strings.ToUpper(uuid()[:13])
	if c.iam.sessions == nil {
		c.iam.sessions = map[string]session{}
	}
	c.iam.sessions[key] = s

	out := &assumed{XMLName: xml.Name{Local: op + "Result"}}
	out.Credentials.AccessKeyId, out.Credentials.SecretAccessKey, out.Credentials.SessionToken = key, "secret-of-"+key, s.token
	out.Credentials.Expiration = s.ends.UTC().Format(millis)
	out.AssumedRoleUser.Arn, out.AssumedRoleUser.AssumedRoleId = s.arn, s.id
	if op == "AssumeRoleWithWebIdentity" {
		out.SubjectFromWebIdentityToken = "system:serviceaccount:logs:penstock"
	}
	return out, nil
}

func trusts(list []string, source string) bool {
	return len(list) == 0 || oneOrMany(list).match(source, func(s string) string { return s })
}

// roleOf takes the ARN of a role apart.
func roleOf(arn string) (account, name string, ok bool) {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != 6 || parts[2] != "iam" || len(parts[4]) != 12 || !strings.HasPrefix(parts[5], "role/") {
		return "", "", false
	}
	return parts[4], parts[5][strings.LastIndexByte(parts[5], '/')+1:], true
}

// writeQueryError answers in the Query protocol.
func writeQueryError(w http.ResponseWriter, e *apiError, request string) {
	who, code := "Sender", e.query
	if e.status >= http.StatusInternalServerError {
		who = "Receiver"
	}
	if code == "" {
		code = e.code
	}
	w.WriteHeader(e.status)
	body, err := xml.Marshal(struct {
		XMLName xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse"`
		Error   struct{ Type, Code, Message string }
		Request string `xml:"RequestId"`
	}{Error: struct{ Type, Code, Message string }{who, code, e.message}, Request: request})
	if err != nil {
		panic(err) // only strings are given to it
	}
	_, _ = w.Write(body)
}
