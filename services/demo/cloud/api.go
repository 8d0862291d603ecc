package cloud

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// maxAPIRequest bounds the body of a request to an API.
const maxAPIRequest = 1 << 20

// api is one emulated AWS API beside S3 and SQS. Each is a file api_<name>.go that
// says registerAPI in init and has a method of [Cloud] by which tests fill it.
type api interface {
	// scope is the service in the credential scope of its requests, e.g. "logs".
	scope() string
	// operation names what r asks for, e.g. "LookupEvents"; "" when r is not for
	// this API. It must not read the body.
	operation(r *http.Request) string
	// serve carries out one request whose signature was looked at. The answer is
	// written as JSON, a [rawAnswer] as it is.
	serve(ctx context.Context, call *apiCall) (answer any, e *apiError)
}

// apiNamer is an api that tells a fault function what a request is about, e.g. the
// log group, as its key. The region is its name.
type apiNamer interface {
	about(call *apiCall) string
}

// apiErrors is an api whose errors are not JSON with __type and message.
type apiErrors interface {
	refuse(w http.ResponseWriter, r *http.Request, e *apiError)
}

// apiCall is one request to an api.
type apiCall struct {
	op string
	// region and key are those that the request was signed for and with.
	region, key string
	body        []byte
	// http is the request; its body has been read.
	http *http.Request
}

// decode reads a JSON body. As the services do not know what they do not know,
// a field that the emulation has not is refused, not ignored.
func (a *apiCall) decode(into any) *apiError {
	d := json.NewDecoder(bytes.NewReader(a.body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return &apiError{status: http.StatusBadRequest, code: "SerializationException", message: "The request body does not fit " + a.op + ": " + err.Error()}
	}
	return nil
}

// rawAnswer is an answer that is not JSON.
type rawAnswer struct {
	contentType string
	body        []byte
}

// apiMakers make the APIs of a Cloud. Filled by registerAPI from init functions.
var apiMakers []func(c *Cloud) api

// registerAPI adds an API to every Cloud that is started.
func registerAPI(open func(c *Cloud) api) { apiMakers = append(apiMakers, open) }

// apiOf returns the API of type T of c.
func apiOf[T api](c *Cloud) T {
	for _, a := range c.apis {
		if t, ok := a.(T); ok {
			return t
		}
	}
	panic("cloud: an API is not registered")
}

// apiFor returns the API that r is for and the operation, nil for S3 and SQS.
func (c *Cloud) apiFor(r *http.Request) (api, string) {
	for _, a := range c.apis {
		if op := a.operation(r); op != "" {
			return a, op
		}
	}
	return nil, ""
}

func (c *Cloud) serveAPI(w http.ResponseWriter, r *http.Request, a api, op string) {
	w.Header().Set("X-Amzn-Requestid", uuid())
	refuse := func(e *apiError) {
		if own, ok := a.(apiErrors); ok {
			own.refuse(w, r, e)
			return
		}
		refuseJSON(w, r, e)
	}
	scope, e := signature(r)
	if e == nil {
		e = c.credential(r, a.scope())
	}
	if e != nil {
		refuse(e)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAPIRequest))
	if err != nil {
		var large *http.MaxBytesError
		if !errors.As(err, &large) {
			panic(http.ErrAbortHandler) // there is nobody to answer
		}
		refuse(&apiError{status: http.StatusRequestEntityTooLarge, code: "RequestEntityTooLargeException", message: "The request is too large."})
		return
	}
	call := &apiCall{op: op, key: scope[0], region: scope[2], body: body, http: r}
	about := ""
	if n, ok := a.(apiNamer); ok {
		about = n.about(call)
	}
	f, e, ok := c.suffer(r.Context(), op, call.region, about)
	if !ok {
		if e == nil {
			panic(http.ErrAbortHandler)
		}
		if f.RetryAfter != "" {
			w.Header().Set("Retry-After", f.RetryAfter)
		}
		refuse(e)
		return
	}
	w, finish := cut(w, f)
	defer finish()
	if e := c.mayAPI(r, a.scope(), op, call.region, about); e != nil {
		e.code = "AccessDeniedException"
		refuse(e)
		return
	}
	answer, e := a.serve(r.Context(), call)
	if e != nil {
		refuse(e)
		return
	}
	raw, ok := answer.(rawAnswer)
	if !ok {
		raw = rawAnswer{contentType: contentTypeOf(r), body: encode(answer)}
	}
	w.Header().Set("Content-Type", raw.contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(raw.body)))
	_, _ = w.Write(raw.body) // for a client that left or not: it asks again
}

// signature returns the parts of the credential scope. Whether the signature is
// right is not looked at, only that it is there with the headers that it covers.
func signature(r *http.Request) ([]string, *apiError) {
	missing := func(what string) ([]string, *apiError) {
		return nil, &apiError{status: http.StatusForbidden, code: "IncompleteSignatureException", message: "Authorization header requires '" + what + "'."}
	}
	auth := r.Header.Get("Authorization")
	if auth == "" {
		return nil, &apiError{status: http.StatusForbidden, code: "MissingAuthenticationTokenException", message: "Missing Authentication Token"}
	}
	params, _ := strings.CutPrefix(auth, "AWS4-HMAC-SHA256 ")
	found := map[string]string{}
	for param := range strings.SplitSeq(params, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(param), "=")
		found[k] = v
	}
	signed := ";" + found["SignedHeaders"] + ";"
	scope := strings.Split(found["Credential"], "/")
	switch {
	case len(scope) != 5:
		return missing("Credential")
	case len(found["Signature"]) != 64:
		return missing("Signature")
	case !strings.Contains(signed, ";host;") || !strings.Contains(signed, ";x-amz-date;") || r.Header.Get("X-Amz-Date") == "":
		return missing("SignedHeaders")
	}
	return scope, nil
}

// signedFor returns the service that r is signed for, "" when it is not signed:
// what tells REST APIs apart, whose paths could be those of a bucket.
func signedFor(r *http.Request) string {
	scope, e := signature(r)
	if e != nil {
		return ""
	}
	return scope[3]
}

// refuseJSON answers as the JSON and the REST-JSON protocols do.
func refuseJSON(w http.ResponseWriter, r *http.Request, e *apiError) {
	w.Header().Set("Content-Type", contentTypeOf(r))
	w.Header().Set("X-Amzn-Errortype", e.code)
	w.WriteHeader(e.status)
	_, _ = w.Write(encode(map[string]string{"__type": e.code, "message": e.message}))
}

func contentTypeOf(r *http.Request) string {
	if t := r.Header.Get("Content-Type"); strings.HasPrefix(t, "application/x-amz-json-") {
		return t
	}
	return "application/json"
}
