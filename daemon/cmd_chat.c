/* switchyard chat: talk to a running server from a terminal. Any OpenAI-style server will do. */
#include <curl/curl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/cli.h"
#include "daemon/commands.h"

struct chat {
    const char *url, *model, *key;
    json_t *messages;
    struct buf line;    /* of the event stream, not yet whole */
    struct buf answer;
    char expert[128], reason[64];
    struct buf error;   /* body of an answer that is not a stream */
    bool streaming;
};

static void take_delta(struct chat *c, json_t *event)
{
    json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
    json_t *content = json_object_get(json_object_get(choice, "delta"), "content");
    json_t *error = json_object_get(json_object_get(event, "error"), "message");
    if (json_is_string(error))
        buf_puts(&c->error, json_string_value(error));
    if (!json_is_string(content))
        return;
    fwrite(json_string_value(content), 1, json_string_length(content), stdout);
    fflush(stdout);
    buf_append(&c->answer, json_string_value(content), json_string_length(content));
}

static void take_line(struct chat *c, const char *line)
{
    if (strncmp(line, "data: ", 6) != 0 || strcmp(line + 6, "[DONE]") == 0)
        return;
    json_t *event = json_loads(line + 6, 0, NULL);
    take_delta(c, event);
    json_decref(event);
}

static size_t on_body(char *data, size_t size, size_t n, void *ctx)
{
    struct chat *c = ctx;
    if (!c->streaming) {
        buf_append(&c->error, data, size * n);
        return size * n;
    }
    for (size_t i = 0; i < size * n; i++) {
        if (data[i] != '\n') {
            buf_append(&c->line, data + i, 1);
            continue;
        }
        if (c->line.len)
            take_line(c, c->line.data);
        buf_clear(&c->line);
    }
    return size * n;
}

static void copy_header(const char *line, size_t len, const char *name, char *out, size_t cap)
{
    size_t at = strlen(name);
    if (len < at || strncasecmp(line, name, at) != 0)
        return;
    while (at < len && line[at] == ' ')
        at++;
    while (len > at && (line[len - 1] == '\n' || line[len - 1] == '\r'))
        len--;
    snprintf(out, cap, "%.*s", (int)(len - at), line + at);
}

static size_t on_header(char *line, size_t size, size_t n, void *ctx)
{
    struct chat *c = ctx;
    char type[64] = "";
    copy_header(line, size * n, "content-type:", type, sizeof(type));
    if (strstr(type, "event-stream"))
        c->streaming = true;
    copy_header(line, size * n, "x-switchyard-expert:", c->expert, sizeof(c->expert));
    copy_header(line, size * n, "x-switchyard-reason:", c->reason, sizeof(c->reason));
    return size * n;
}

static char *request_body(const struct chat *c)
{
    json_t *body = json_pack("{s:s,s:b,s:O}", "model", c->model, "stream", 1, "messages", c->messages);
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}

static enum err_code exchange(struct chat *c, struct err *e)
{
    char *url = mem_format("%s/v1/chat/completions", c->url), *body = request_body(c);
    char *auth = c->key ? mem_format("Authorization: Bearer %s", c->key) : NULL;
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (auth)
        headers = curl_slist_append(headers, auth);
    buf_clear(&c->answer);
    buf_clear(&c->error);
    buf_clear(&c->line);
    c->streaming = false;
    c->expert[0] = c->reason[0] = 0;
    CURL *h = curl_easy_init();
    curl_easy_setopt(h, CURLOPT_URL, url);
    curl_easy_setopt(h, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(h, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(h, CURLOPT_WRITEDATA, c);
    curl_easy_setopt(h, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(h, CURLOPT_HEADERDATA, c);
    CURLcode rc = curl_easy_perform(h);
    curl_easy_cleanup(h);
    curl_slist_free_all(headers);
    free(auth);
    free(body);
    enum err_code code = ERR_OK;
    if (rc != CURLE_OK)
        code = err_set(e, ERR_IO, "%s: %s; is 'switchyard serve' running there?", url, curl_easy_strerror(rc));
    else if (c->error.len)
        code = err_set(e, ERR_INVALID, "%.400s", c->error.data);
    free(url);
    return code;
}

static bool ask(struct chat *c, const char *text, bool quiet)
{
    struct err e = {0};
    json_array_append_new(c->messages, json_pack("{s:s,s:s}", "role", "user", "content", text));
    if (exchange(c, &e) != ERR_OK) {
        json_array_remove(c->messages, json_array_size(c->messages) - 1);
        cli_refuse("chat", &e);
        return false;
    }
    printf("\n");
    if (!quiet && c->expert[0])
        printf("[%s, %s]\n", c->expert, c->reason);
    json_array_append_new(c->messages, json_pack("{s:s,s:s}", "role", "assistant", "content",
                                                 c->answer.data ? c->answer.data : ""));
    return true;
}

static int converse(struct chat *c)
{
    bool terminal = isatty(STDIN_FILENO);
    char *line = NULL;
    size_t cap = 0;
    bool ok = true;
    if (terminal)
        printf("Talking to %s at %s. An empty line or Ctrl-D ends.\n", c->model, c->url);
    for (;;) {
        if (terminal) {
            printf("> ");
            fflush(stdout);
        }
        ssize_t len = getline(&line, &cap, stdin);
        if (len <= 0 || line[0] == '\n')
            break;
        line[strcspn(line, "\n")] = 0;
        ok = ask(c, line, !terminal);
        if (!ok && !terminal)
            break;
    }
    free(line);
    return ok ? CLI_DONE : CLI_REFUSED;
}

int cmd_chat(int argc, char **argv)
{
    const char *message = NULL, *system = NULL;
    struct chat c = {.url = "http://127.0.0.1:8080", .model = "auto", .key = getenv("SWITCHYARD_API_KEY")};
    const struct cli_option options[] = {
        {"model", 'm', CLI_TEXT, &c.model, "NAME", "an expert, or auto to let the router choose (default)"},
        {"url", 'u', CLI_TEXT, &c.url, "URL", "the server (default http://127.0.0.1:8080)"},
        {"system", 's', CLI_TEXT, &system, "TEXT", "system prompt"},
        {0}};
    const struct cli_spec spec = {
        "chat", "[MESSAGE]",
        "Sends a message, or holds a conversation line by line, and shows which expert answered. The key of a\n"
        "protected server is taken from SWITCHYARD_API_KEY.",
        "  switchyard chat \"Translate to French: Good morning\"\n  switchyard chat --model text2sql\n",
        options, 0, 1};
    size_t args;
    int exit = cli_parse(argc, argv, &spec, &message, &args);
    if (exit != CLI_RUN)
        return exit;
    curl_global_init(CURL_GLOBAL_DEFAULT);
    c.messages = json_array();
    if (system)
        json_array_append_new(c.messages, json_pack("{s:s,s:s}", "role", "system", "content", system));
    if (message)
        exit = ask(&c, message, false) ? CLI_DONE : CLI_REFUSED;
    else
        exit = converse(&c);
    json_decref(c.messages);
    buf_done(&c.line);
    buf_done(&c.answer);
    buf_done(&c.error);
    curl_global_cleanup();
    return exit;
}
