/* Switches of a server from outside, over the OpenAI API: any server will do. The first token is
 * the first event of a stream that carries text or ends the answer. */
#include <curl/curl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/bench_switch.h"

struct remote {
    struct bench_switch *b;
    CURL *curl; /* one connection, kept */
    struct curl_slist *headers;
    char **names; /* [b->experts] */
    char *words;  /* the prompt */
    struct buf line, whole;
    uint64_t sent_ns, first_ns, asked;
};

static size_t on_body(char *data, size_t size, size_t n, void *ctx)
{
    struct remote *r = ctx;
    buf_append(&r->whole, data, size * n);
    for (size_t i = 0; i < size * n; i++) {
        if (data[i] != '\n') {
            buf_append(&r->line, data + i, 1);
            continue;
        }
        /* Some servers open the stream with the role alone, before they have computed anything. */
        const char *line = r->line.len > 0 ? r->line.data : "";
        bool text = strstr(line, "\"content\":\"") && strstr(line, "\"content\":\"\"") == NULL;
        bool end = strstr(line, "\"finish_reason\":\"") != NULL;
        if (r->first_ns == 0 && strncmp(line, "data:", 5) == 0 && (text || end))
            r->first_ns = clock_ns();
        buf_clear(&r->line);
    }
    return size * n;
}

static enum err_code exchange(struct remote *r, const char *url, const char *body, struct err *e)
{
    long status = 0;
    r->first_ns = 0;
    buf_clear(&r->line);
    buf_clear(&r->whole);
    curl_easy_setopt(r->curl, CURLOPT_URL, url);
    curl_easy_setopt(r->curl, CURLOPT_HTTPHEADER, r->headers);
    if (body)
        curl_easy_setopt(r->curl, CURLOPT_POSTFIELDS, body);
    else
        curl_easy_setopt(r->curl, CURLOPT_HTTPGET, 1L);
    r->sent_ns = clock_ns();
    CURLcode rc = curl_easy_perform(r->curl);
    if (rc != CURLE_OK)
        return err_set(e, ERR_IO, "%s: %s", url, curl_easy_strerror(rc));
    curl_easy_getinfo(r->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200)
        return err_set(e, ERR_IO, "%s answers %ld: %.300s", url, status,
                       r->whole.len ? r->whole.data : "");
    return ERR_OK;
}

/* Any JSON object of the server's; the caller drops the reference. */
static enum err_code fetch(struct remote *r, const char *url, json_t **ret, struct err *e)
{
    enum err_code code = exchange(r, url, NULL, e);
    if (code != ERR_OK)
        return code;
    *ret = json_loadb(r->whole.data ? r->whole.data : "", r->whole.len, 0, NULL);
    return *ret ? ERR_OK : err_set(e, ERR_IO, "%s does not answer with JSON", url);
}

static enum err_code list_models(struct remote *r, struct err *e)
{
    struct bench_switch *b = r->b;
    json_t *all = NULL;
    char *url = mem_format("%s/v1/models", b->url);
    size_t n = 0;
    enum err_code code = b->models.count ? ERR_OK : fetch(r, url, &all, e);
    free(url);
    json_t *data = json_object_get(all, "data");
    r->names = mem_array(BASE_MAX(json_array_size(data), b->models.count) + 1, sizeof(char *));
    for (size_t i = 0; i < b->models.count; i++)
        r->names[n++] = mem_strdup(b->models.items[i]);
    for (size_t i = 0; i < json_array_size(data) && n < b->experts; i++) {
        const char *id = json_string_value(json_object_get(json_array_get(data, i), "id"));
        if (id && strcmp(id, "auto") != 0)
            r->names[n++] = mem_strdup(id);
    }
    json_decref(all);
    b->experts = n;
    if (code == ERR_OK && n < 2)
        code = err_set(e, ERR_INVALID, "switching takes two models at least, and %s serves %zu",
                       b->url, n);
    return code;
}

static enum err_code first_token(struct remote *r, const char *name, double *ret_ms, struct err *e)
{
    char *url = mem_format("%s/v1/chat/completions", r->b->url);
    /* No two prompts begin alike, so that no cache of prompts plays a part. */
    char *prompt =
        mem_format("%llu: %s", (unsigned long long)(++r->asked * 7919 % 100003), r->words);
    json_t *body = json_pack("{s:s,s:b,s:i,s:i,s:[{s:s,s:s}]}", "model", name, "stream", 1,
                             "max_tokens", (int)r->b->tokens, "temperature", 0, "messages", "role",
                             "user", "content", prompt);
    char *text = json_dumps(body, JSON_COMPACT);
    enum err_code code = exchange(r, url, text, e);
    if (code == ERR_OK && r->first_ns == 0)
        code = err_set(e, ERR_IO, "%s streamed no token: %.300s", url, r->whole.data);
    *ret_ms = (double)(r->first_ns - r->sent_ns) * 1e-6;
    free(text);
    free(prompt);
    json_decref(body);
    free(url);
    return code;
}

static enum err_code send_away(struct remote *r, const char *name, struct err *e)
{
    char *url = mem_format("%s/admin/experts/%s/unload", r->b->admin, name);
    enum err_code code = exchange(
        r, url, strcmp(r->b->from, "ddr") == 0 ? "{\"to\":\"ddr\"}" : "{\"to\":\"nvme\"}", e);
    free(url);
    return code;
}

static enum err_code measure(struct remote *r, struct bench_pattern *p, struct err *e)
{
    struct bench_switch *b = r->b;
    struct rng rng;
    double ttft, resident, ignored;
    rng_init(&rng, b->seed);
    bool away = strcmp(b->from, "ddr") == 0 || strcmp(b->from, "nvme") == 0;
    for (uint64_t i = 0; i < b->requests; i++) {
        uint32_t at = bench_pattern_next(p);
        /* Whatever came last was this one: ask another, so that there is something to switch from.
         */
        uint32_t other =
            (at + 1 + (uint32_t)rng_below(&rng, b->experts - 1)) % (uint32_t)b->experts;
        enum err_code code = first_token(r, r->names[other], &ignored, e);
        if (code == ERR_OK && away)
            code = send_away(r, r->names[at], e);
        if (code == ERR_OK)
            code = first_token(r, r->names[at], &ttft, e);
        if (code == ERR_OK)
            code = first_token(r, r->names[at], &resident, e);
        if (code != ERR_OK)
            return code;
        bench_add(&b->figures.ttft, ttft);
        bench_add(&b->figures.resident, resident);
        bench_add(&b->figures.excess, ttft - resident);
        if (b->live)
            fprintf(stderr, "%llu %s %.2f ms, again %.2f ms\n", (unsigned long long)i, r->names[at],
                    ttft, resident);
    }
    return ERR_OK;
}

enum err_code bench_run_remote(struct bench_switch *b, struct err *e)
{
    struct remote r = {.b = b, .curl = curl_easy_init()};
    struct bench_pattern p = {0};
    struct buf words = {0};
    for (uint64_t i = 0; i < b->prompt; i++)
        buf_puts(&words, i ? " sea" : "The");
    r.words = words.data;
    r.headers = curl_slist_append(NULL, "Content-Type: application/json");
    char *auth = b->key ? mem_format("Authorization: Bearer %s", b->key) : NULL;
    if (auth)
        r.headers = curl_slist_append(r.headers, auth);
    curl_easy_setopt(r.curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(r.curl, CURLOPT_WRITEDATA, &r);
    curl_easy_setopt(r.curl, CURLOPT_TCP_NODELAY, 1L);
    enum err_code code = list_models(&r, e);
    if (code == ERR_OK)
        code = bench_pattern_init(&p, b->pattern, (uint32_t)b->experts, b->seed, e);
    if (code == ERR_OK)
        code = measure(&r, &p, e);
    bench_pattern_done(&p);
    for (size_t i = 0; r.names && r.names[i]; i++)
        free(r.names[i]);
    free(r.names);
    free(auth);
    curl_slist_free_all(r.headers);
    curl_easy_cleanup(r.curl);
    buf_done(&words);
    buf_done(&r.line);
    buf_done(&r.whole);
    return code;
}
