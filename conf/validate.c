/* Rules that one key alone cannot break: the listener's safety, names, and how experts refer to
 * each other. What needs the store or the machine (files, memory) is checked where those are known.
 */
#include "conf/conf.h"

#include <arpa/inet.h>
#include <string.h>

/* ---- server ---- */

static bool is_loopback(const char *host)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (strcmp(host, "localhost") == 0)
        return true;
    if (inet_pton(AF_INET, host, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    return inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

static enum err_code check_api_keys(const struct conf *c, struct err *e)
{
    static const char key[] = "server.api_keys";
    for (size_t i = 0; i < c->server_api_keys_count; i++) {
        const char *k = c->server_api_keys[i];
        if (k[0] == '\0' || strpbrk(k, " \t\n") != NULL)
            return err_set_param(e, ERR_INVALID, key,
                                 "%s: key %zu is empty or has a blank; a header cannot carry it",
                                 key, i + 1);
        if (strcmp(k, "***") == 0)
            return err_set_param(e, ERR_INVALID, key,
                                 "%s: '***' is how a key is printed, not a key", key);
        for (size_t j = 0; j < i; j++) {
            if (strcmp(k, c->server_api_keys[j]) == 0)
                return err_set_param(e, ERR_INVALID, key, "%s: keys %zu and %zu are the same", key,
                                     j + 1, i + 1);
        }
    }
    return ERR_OK;
}

static enum err_code check_server(const struct conf *c, struct err *e)
{
    if (c->server_host[0] == '\0')
        return err_set_param(e, ERR_INVALID, "server.host", "server.host: is empty");
    if (!is_loopback(c->server_host) && c->server_api_keys_count == 0)
        return err_set_param(e, ERR_INVALID, "server.host",
                             "server.host: %.64s is reachable from other machines and no key is "
                             "asked for; set server.api_keys, or listen on 127.0.0.1",
                             c->server_host);
    /* sun_path of struct sockaddr_un, NUL included. */
    if (strlen(c->server_unix_socket) > 107)
        return err_set_param(e, ERR_INVALID, "server.unix_socket",
                             "server.unix_socket: the path has %zu bytes, at most 107 fit",
                             strlen(c->server_unix_socket));
    for (size_t i = 0; i < c->server_cors_origins_count; i++) {
        const char *origin = c->server_cors_origins[i];
        if (strcmp(origin, "*") != 0 && strncmp(origin, "http://", 7) != 0 &&
            strncmp(origin, "https://", 8) != 0)
            return err_set_param(e, ERR_INVALID, "server.cors_origins",
                                 "server.cors_origins: '%.64s' is no origin; write `*` or a scheme "
                                 "and host such as https://chat.example.com",
                                 origin);
    }
    return check_api_keys(c, e);
}

/* ---- experts ---- */

enum { EXPERT_NAME_BYTES_MAX = 63 }; /* a label of the routing head */

static bool name_char_ok(unsigned char ch)
{
    return (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || (ch >= '0' && ch <= '9') ||
           strchr("._-:/@+", ch) != NULL;
}

static enum err_code check_name(const char *param, const char *name, struct err *e)
{
    size_t len = strlen(name);
    if (len == 0 || len > EXPERT_NAME_BYTES_MAX)
        return err_set_param(e, ERR_INVALID, param, "%s: a name has 1 to %d bytes, '%.80s' has %zu",
                             param, EXPERT_NAME_BYTES_MAX, name, len);
    for (size_t i = 0; i < len; i++) {
        if (!name_char_ok((unsigned char)name[i]))
            return err_set_param(e, ERR_INVALID, param,
                                 "%s: '%s' has a character that a name cannot have; use letters, "
                                 "digits and . _ - : / @ +",
                                 param, name);
    }
    if (name[0] == '/' || name[0] == '-')
        return err_set_param(e, ERR_INVALID, param, "%s: '%s' begins with '%c'", param, name,
                             name[0]);
    if (strcmp(name, "auto") == 0)
        return err_set_param(e, ERR_INVALID, param,
                             "%s: 'auto' is how clients ask for the router; choose another name",
                             param);
    return ERR_OK;
}

static bool expert_answers_to(const struct conf_expert *x, const char *name)
{
    if (strcmp(x->name, name) == 0)
        return true;
    for (size_t i = 0; i < x->aliases_count; i++) {
        if (strcmp(x->aliases[i], name) == 0)
            return true;
    }
    return false;
}

static const struct conf_expert *find_expert(const struct conf *c, const char *name)
{
    for (size_t i = 0; i < c->experts_count; i++) {
        if (expert_answers_to(&c->experts[i], name))
            return &c->experts[i];
    }
    return NULL;
}

/* `name` is well formed and nobody before expert `index` (and its alias `alias`) answers to it. */
static enum err_code check_new_name(const struct conf *c, size_t index, size_t alias,
                                    const char *param, const char *name, struct err *e)
{
    enum err_code rc = check_name(param, name, e);
    if (rc != ERR_OK)
        return rc;
    for (size_t i = 0; i < index; i++) {
        if (expert_answers_to(&c->experts[i], name))
            return err_set_param(e, ERR_INVALID, param,
                                 "%s: '%s' is already a name of expert '%s' (experts[%zu])", param,
                                 name, c->experts[i].name, i);
    }
    const struct conf_expert *x = &c->experts[index];
    bool own = alias > 0 && strcmp(x->name, name) == 0;
    for (size_t i = 0; i + 1 < alias; i++)
        own = own || strcmp(x->aliases[i], name) == 0;
    if (own)
        return err_set_param(e, ERR_INVALID, param, "%s: '%s' is listed twice", param, name);
    return ERR_OK;
}

static enum err_code check_names(const struct conf *c, size_t index, struct err *e)
{
    const struct conf_expert *x = &c->experts[index];
    char param[64];
    (void)snprintf(param, sizeof(param), "experts[%zu].name", index);
    enum err_code rc = check_new_name(c, index, 0, param, x->name, e);
    (void)snprintf(param, sizeof(param), "experts[%zu].aliases", index);
    for (size_t i = 0; i < x->aliases_count && rc == ERR_OK; i++)
        rc = check_new_name(c, index, i + 1, param, x->aliases[i], e);
    return rc;
}

static enum err_code check_base(const struct conf *c, size_t index, struct err *e)
{
    const struct conf_expert *x = &c->experts[index];
    char param[64];
    (void)snprintf(param, sizeof(param), "experts[%zu].base", index);
    if (x->base[0] == '\0') {
        if (x->adapter[0] == '\0')
            return ERR_OK;
        return err_set_param(e, ERR_INVALID, param,
                             "%s: expert '%s' has an adapter but no base to put it on", param,
                             x->name);
    }
    if (x->model[0] != '\0')
        return err_set_param(e, ERR_INVALID, param,
                             "%s: expert '%s' has both a model and a base; weights come from one",
                             param, x->name);
    const struct conf_expert *base = find_expert(c, x->base);
    if (base == NULL)
        return err_set_param(e, ERR_INVALID, param,
                             "%s: no expert '%.64s' is listed; list it under experts: (its name "
                             "alone is enough if the store has it)",
                             param, x->base);
    if (base == x)
        return err_set_param(e, ERR_INVALID, param, "%s: expert '%s' is its own base", param,
                             x->name);
    if (base->base[0] != '\0')
        return err_set_param(e, ERR_INVALID, param,
                             "%s: '%s' itself sits on '%s'; name that one as the base", param,
                             base->name, base->base);
    return ERR_OK;
}

/* A key that lets nobody in would be a door without a house. */
static enum err_code check_keys(const struct conf *c, size_t index, struct err *e)
{
    const struct conf_expert *x = &c->experts[index];
    char param[64];
    (void)snprintf(param, sizeof(param), "experts[%zu].keys", index);
    for (size_t i = 0; i < x->keys_count; i++) {
        bool known = false;
        for (size_t k = 0; k < c->server_api_keys_count; k++)
            known = known || strcmp(x->keys[i], c->server_api_keys[k]) == 0;
        if (!known)
            return err_set_param(e, ERR_INVALID, param,
                                 "%s: key %zu is not among server.api_keys; list it there too",
                                 param, i + 1);
    }
    return ERR_OK;
}

/* ---- all ---- */

static enum err_code check_router(const struct conf *c, struct err *e)
{
    for (size_t i = 0; i < c->router_stages_count; i++) {
        for (size_t j = 0; j < i; j++) {
            if (strcmp(c->router_stages[i], c->router_stages[j]) == 0)
                return err_set_param(e, ERR_INVALID, "router.stages",
                                     "router.stages: '%s' is listed twice", c->router_stages[i]);
        }
    }
    return ERR_OK;
}

enum err_code conf_validate(const struct conf *c, struct err *e)
{
    enum err_code rc = check_server(c, e);
    if (rc != ERR_OK)
        return rc;
    if (c->store_path[0] == '\0')
        return err_set_param(e, ERR_INVALID, "store.path", "store.path: is empty");
    if (c->kv_page_tokens % 32 != 0)
        return err_set_param(e, ERR_INVALID, "kv.page_tokens",
                             "kv.page_tokens: %u is not a multiple of 32", c->kv_page_tokens);
    if (c->rdu_exec == CONF_EXEC_NATIVE && c->rdu_compiler[0] == '\0')
        return err_set_param(e, ERR_INVALID, "rdu.compiler",
                             "rdu.compiler: is empty, but rdu.exec: native compiles");
    rc = check_router(c, e);
    for (size_t i = 0; i < c->experts_count && rc == ERR_OK; i++)
        rc = check_names(c, i, e);
    for (size_t i = 0; i < c->experts_count && rc == ERR_OK; i++)
        rc = check_base(c, i, e);
    for (size_t i = 0; i < c->experts_count && rc == ERR_OK; i++)
        rc = check_keys(c, i, e);
    return rc;
}
