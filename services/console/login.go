package console

import (
	"errors"
	"net/http"
	"net/url"
)

func init() {
	register(page{
		path: "/login", title: "Log in", get: getLogin, open: true,
		routes: []route{
			{"POST /login", login, readOnly},
			{"GET /login/oidc", beginOIDC, readOnly},
			{"GET /login/oidc/callback", endOIDC, readOnly},
		},
	})
	register(page{path: "/bus", title: "Bus", routes: []route{{"GET /bus", func(r *request) error { return r.fragment("bus-state", r.c.away()) }, readOnly}}})
	register(page{title: "Log out", open: true, path: "/logout", routes: []route{{"POST /logout", logout, readOnly}}})
	register(page{title: "Theme", open: true, path: "/theme", routes: []route{{"POST /theme", setTheme, readOnly}}})
}

type loginView struct {
	Password, OIDC    bool
	Name, Next, Error string
	Issuer            string
}

func (r *request) loginView() loginView {
	g := r.c.gate
	v := loginView{Password: len(g.users) > 0, OIDC: g.oidc != nil, Next: inside(r.FormValue("next"))}
	if u, err := url.Parse(g.cfg.OIDC.Issuer); err == nil {
		v.Issuer = u.Host
	}
	return v
}

func getLogin(r *request) error {
	v := r.loginView()
	if !r.c.gate.cfg.guarded() || r.user.name != "" {
		http.Redirect(r.w, r.Request, v.Next, http.StatusSeeOther)
		return nil
	}
	return r.page("login", v)
}

func login(r *request) error {
	v := r.loginView()
	if !v.Password {
		return errNotFound.New(nil, "log in by password: no users are configured")
	}
	v.Name = cut(r.PostFormValue("name"), 128)
	u, err := r.c.gate.password(r.Context(), r.address(), v.Name, r.PostFormValue("password"))
	if err == nil {
		if err := r.enter(u, "password"); err != nil {
			return err
		}
		http.Redirect(r.w, r.Request, v.Next, http.StatusSeeOther)
		return nil
	}
	status := http.StatusUnauthorized
	switch {
	case errors.Is(err, errLogin):
		v.Error = "Name and password do not fit."
	case errors.Is(err, errLimited):
		status, v.Error = http.StatusTooManyRequests, "Too many logins were tried. Wait a minute."
		r.w.Header().Set("Retry-After", "60")
	default:
		return err
	}
	who := "nobody known" // it may be a password in the wrong field
	if _, known := r.c.gate.users[v.Name]; known {
		who = v.Name
	}
	r.c.log.Warn("a login to the console was refused", "user", who, "address", r.address(), "err", err)
	return r.pageAs(status, r.p.title, "login", v)
}

func logout(r *request) error {
	g := r.c.gate
	if !g.cfg.guarded() {
		http.Redirect(r.w, r.Request, "/", http.StatusSeeOther)
		return nil
	}
	if ctx, err := g.sessions.Load(r.Context(), g.token(r.Request)); err == nil {
		_ = g.sessions.Destroy(ctx)
	}
	g.setCookie(r.w, r.Request, g.cookieName(r.Request), "", "/", -1)
	r.w.Header().Set("Clear-Site-Data", `"cache"`)
	if r.user.name != "" {
		r.c.log.Info("somebody logged out of the console", "user", r.user.name)
	}
	http.Redirect(r.w, r.Request, "/login", http.StatusSeeOther)
	return nil
}
