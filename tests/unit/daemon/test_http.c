/* The HTTP side on real sockets, over an engine that says what it is told. */
#include "tests/unit/daemon/rig.h"

#include <sys/socket.h>
#include <unistd.h>

#define CHAT "/v1/chat/completions"
#define HI "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]"

static const char plain[] = "{\"model\":\"alpha\"," HI "}";
static const char streamed[] = "{\"model\":\"alpha\"," HI ",\"stream\":true}";

static void expect_error(const struct reply *p, int status, const char *type, const char *code)
{
    if (p->status != status)
        fail_msg("status %d, not %d: %s", p->status, status, p->body.data);
    json_t *v = reply_json(p);
    const json_t *e = json_object_get(v, "error");
    assert_string_equal(json_string_value(json_object_get(e, "type")), type);
    assert_string_equal(json_string_value(json_object_get(e, "code")), code);
    assert_true(json_string_length(json_object_get(e, "message")) > 0);
    assert_non_null(json_object_get(e, "param"));
    json_decref(v);
}

static void ask_error(const struct rig *r, const char *method, const char *path,
                      const char *headers, const char *body, int status, const char *code)
{
    struct reply p;
    rig_ask(r, method, path, headers, body, &p);
    expect_error(&p, status,
                 status == 401   ? "authentication_error"
                 : status == 503 ? "overloaded_error"
                 : status < 500  ? "invalid_request_error"
                                 : "server_error",
                 code);
    reply_done(&p);
}

/* ---- answers ---- */

static void a_chat_is_answered_with_headers_that_say_who(void **state)
{
    struct rig r;
    struct reply p;
    char text[200];
    rig_open(&r);
    rig_ask(&r, "POST", CHAT, "x-request-id: my-1\r\ntraceparent: 00-ab-cd-01\r\n", plain, &p);
    assert_int_equal(p.status, 200);
    assert_true(p.whole);
    assert_string_equal(reply_header(&p, "x-request-id", text, sizeof text), "my-1");
    assert_string_equal(reply_header(&p, "traceparent", text, sizeof text), "00-ab-cd-01");
    assert_string_equal(reply_header(&p, "x-switchyard-expert", text, sizeof text), "alpha");
    assert_string_equal(reply_header(&p, "x-switchyard-reason", text, sizeof text), "model");
    assert_string_equal(reply_header(&p, "content-type", text, sizeof text), "application/json");
    assert_non_null(strstr(p.body.data, "\"content\":\"Hello, world! \""));
    reply_done(&p);
    rig_ask(&r, "POST", CHAT, "x-request-id: has space\r\n", "{\"model\":\"auto\"," HI "}", &p);
    assert_int_equal(p.status, 200);
    assert_int_equal(strncmp(reply_header(&p, "x-request-id", text, sizeof text), "req-", 4), 0);
    assert_string_equal(reply_header(&p, "x-switchyard-reason", text, sizeof text), "no_head");
    reply_done(&p);
    rig_close(&r);
}

static void one_connection_carries_many_requests(void **state)
{
    struct rig r;
    rig_open(&r);
    int fd = rig_connect(&r);
    for (int i = 0; i < 50; i++) {
        struct reply p;
        rig_post(fd, CHAT, "", i % 3 == 0 ? streamed : i % 3 == 1 ? plain : "{\"bad\":");
        rig_receive(fd, &p);
        assert_int_equal(p.status, i % 3 == 2 ? 400 : 200);
        assert_true(p.whole);
        reply_done(&p);
    }
    close(fd);
    rig_close(&r);
}

static void paths_and_methods_that_are_not_there(void **state)
{
    struct rig r;
    struct reply p;
    char text[100];
    rig_open(&r);
    ask_error(&r, "POST", "/v1/chat/completion", "", plain, 404, "not_found");
    ask_error(&r, "GET", CHAT, "", NULL, 405, "method_not_allowed");
    ask_error(&r, "GET", "/v1/models/nope", "", NULL, 404, "model_not_found");
    ask_error(&r, "POST", CHAT, "", "{\"model\":\"nope\"," HI "}", 404, "model_not_found");
    rig_ask(&r, "GET", CHAT, "", NULL, &p);
    assert_string_equal(reply_header(&p, "allow", text, sizeof text), "POST, OPTIONS");
    reply_done(&p);
    rig_close(&r);
}

static void models_with_a_slash_in_their_name_are_found(void **state)
{
    static const char *const paths[] = {"/v1/models/org/beta", "/v1/models/org%2Fbeta"};
    struct rig r;
    struct reply p;
    rig_open(&r);
    for (size_t i = 0; i < BASE_COUNT(paths); i++) {
        rig_ask(&r, "GET", paths[i], "", NULL, &p);
        assert_int_equal(p.status, 200);
        json_t *v = reply_json(&p);
        assert_string_equal(json_string_value(json_object_get(v, "id")), "org/beta");
        json_decref(v);
        reply_done(&p);
    }
    rig_ask(&r, "GET", "/v1/models", "", NULL, &p);
    json_t *v = reply_json(&p);
    assert_int_equal(json_array_size(json_object_get(v, "data")), 5); /* four and auto */
    json_decref(v);
    reply_done(&p);
    rig_close(&r);
}

/* A request is counted when its connection is done with it, which is after the client has the
 * answer. */
static bool metrics_say(const struct rig *r, const char *line)
{
    struct reply p;
    rig_ask(r, "GET", "/metrics", "", NULL, &p);
    bool found = strstr(p.body.data, line) != NULL;
    reply_done(&p);
    return found;
}

static void health_ready_and_metrics_answer(void **state)
{
    struct rig r;
    struct reply p;
    rig_open(&r);
    rig_ask(&r, "POST", CHAT, "", plain, &p);
    reply_done(&p);
    rig_ask(&r, "GET", "/health", "", NULL, &p);
    assert_int_equal(p.status, 200);
    reply_done(&p);
    rig_ask(&r, "GET", "/ready", "", NULL, &p);
    assert_int_equal(p.status, 200);
    reply_done(&p);
    atomic_store(&r.server.draining, true);
    rig_ask(&r, "GET", "/ready", "", NULL, &p);
    assert_int_equal(p.status, 503);
    reply_done(&p);
    rig_wait(metrics_say(&r, "switchyard_requests_total{expert=\"alpha\",status=\"200\"} 1\n"));
    rig_ask(&r, "GET", "/metrics", "", NULL, &p);
    assert_int_equal(p.status, 200);
    assert_non_null(
        strstr(p.body.data, "switchyard_ttft_seconds_count{expert=\"alpha\",origin=\"hbm\"} 1\n"));
    assert_non_null(strstr(p.body.data, "# TYPE switchyard_step_seconds histogram\n"));
    reply_done(&p);
    rig_close(&r);
}

/* ---- streams ---- */

static size_t count_of(const char *text, const char *what)
{
    size_t n = 0;
    for (const char *at = text; (at = strstr(at, what)) != NULL; at += strlen(what))
        n++;
    return n;
}

static void streams_have_role_text_finish_and_done(void **state)
{
    struct rig r;
    struct reply p;
    char text[100];
    rig_open(&r);
    fake_engine_script(&(struct fake_script){.tokens = 14, .token_us = 300});
    rig_ask(&r, "POST", CHAT, "", streamed, &p);
    assert_int_equal(p.status, 200);
    assert_true(p.whole);
    assert_int_equal(
        strncmp(reply_header(&p, "content-type", text, sizeof text), "text/event-stream", 17), 0);
    assert_string_equal(reply_header(&p, "cache-control", text, sizeof text), "no-cache");
    assert_string_equal(reply_header(&p, "x-accel-buffering", text, sizeof text), "no");
    assert_int_equal(count_of(p.body.data, "\"role\":\"assistant\""), 1);
    assert_int_equal(count_of(p.body.data, "\"finish_reason\":\"stop\""), 1);
    assert_int_equal(count_of(p.body.data, "\"delta\":{\"content\":"), 14);
    assert_int_equal(count_of(p.body.data, "usage"), 0);
    assert_string_equal(p.body.data + p.body.len - 14, "data: [DONE]\n\n");
    reply_done(&p);
    rig_ask(&r, "POST", CHAT, "",
            "{\"model\":\"alpha\"," HI ",\"stream\":true,\"n\":2,\"max_tokens\":3,"
            "\"x_switchyard\":true,\"stream_options\":{\"include_usage\":true}}",
            &p);
    assert_int_equal(count_of(p.body.data, "\"finish_reason\":\"length\""), 2);
    assert_int_equal(count_of(p.body.data, "\"role\":\"assistant\""), 2);
    const char *usage = strstr(p.body.data, "\"choices\":[],\"usage\":{\"prompt_tokens\"");
    assert_non_null(usage);
    assert_int_equal(count_of(usage, "data: "), 1); /* only [DONE] comes after it */
    assert_non_null(strstr(usage, "\"x_switchyard\":{\"expert\":\"alpha\""));
    reply_done(&p);
    rig_close(&r);
}

static void first_bytes_do_not_wait_for_the_first_token(void **state)
{
    struct rig r;
    char piece[2000];
    rig_open(&r);
    fake_engine_script(&(struct fake_script){.tokens = 1, .load_ms = 2500});
    int fd = rig_connect(&r);
    uint64_t from = clock_ns();
    rig_post(fd, CHAT, "", streamed);
    ssize_t n = recv(fd, piece, sizeof piece - 1, 0);
    assert_true(n > 0 && clock_ns() - from < 500000000ull);
    struct buf all = {0};
    while (n > 0 && !(all.len > 5 && strstr(all.data, "[DONE]") != NULL)) {
        buf_append(&all, piece, (size_t)n);
        n = recv(fd, piece, sizeof piece, 0);
    }
    buf_append(&all, piece, n > 0 ? (size_t)n : 0);
    /* One a second; the first bytes may already say it. */
    assert_in_range(count_of(all.data, ": loading 42%"), 2, 3);
    buf_done(&all);
    close(fd);
    rig_close(&r);
}

static void errors_in_mid_stream_are_an_event_and_the_end(void **state)
{
    struct rig r;
    struct reply p;
    rig_open(&r);
    fake_engine_script(&(struct fake_script){.fail_code = ERR_LOAD_FAILED, .fail_after = 3});
    rig_ask(&r, "POST", CHAT, "", streamed, &p);
    assert_int_equal(p.status, 200);
    assert_true(p.whole);
    assert_int_equal(count_of(p.body.data, "data: {\"error\":{\"message\":"), 1);
    assert_int_equal(count_of(p.body.data, "[DONE]"), 0);
    assert_non_null(strstr(p.body.data, "model_load_failed"));
    reply_done(&p);
    ask_error(&r, "POST", CHAT, "", plain, 503, "model_load_failed");
    rig_close(&r);
}

/* ---- refusals ---- */

static void refusals_of_the_engine_say_when_to_come_back(void **state)
{
    struct rig r;
    struct reply p;
    char text[40];
    rig_open(&r);
    fake_engine_script(&(struct fake_script){.submit_code = ERR_QUEUE_FULL});
    rig_ask(&r, "POST", CHAT, "", streamed, &p);
    expect_error(&p, 503, "overloaded_error", "queue_full");
    assert_string_equal(reply_header(&p, "retry-after", text, sizeof text), "7");
    reply_done(&p);
    fake_engine_script(&(struct fake_script){.submit_code = ERR_NO_MEMORY});
    rig_ask(&r, "POST", CHAT, "", plain, &p);
    expect_error(&p, 507, "server_error", "insufficient_memory");
    assert_string_equal(reply_header(&p, "x-should-retry", text, sizeof text), "false");
    reply_done(&p);
    atomic_store(&r.server.draining, true);
    ask_error(&r, "POST", CHAT, "", plain, 503, "shutting_down");
    rig_close(&r);
}

static void keys_are_asked_for_and_checked(void **state)
{
    struct rig r;
    struct reply p;
    struct err e;
    rig_open_api(&r, 2);
    assert_int_equal(conf_set(&r.conf, "server.api_keys", "sk-one,sk-two", &e), ERR_OK);
    rig_start(&r);
    ask_error(&r, "POST", CHAT, "", plain, 401, "invalid_api_key");
    ask_error(&r, "POST", CHAT, "Authorization: Bearer wrong\r\n", plain, 401, "invalid_api_key");
    ask_error(&r, "POST", CHAT, "Authorization: Bearer sk-on\r\n", plain, 401, "invalid_api_key");
    ask_error(&r, "GET", "/v1/models", "Authorization: Bearer \r\n", NULL, 401, "invalid_api_key");
    ask_error(&r, "POST", "/nowhere", "", plain, 401, "invalid_api_key");
    rig_ask(&r, "POST", CHAT, "Authorization: Bearer sk-two\r\n", plain, &p);
    assert_int_equal(p.status, 200);
    reply_done(&p);
    rig_ask(&r, "POST", CHAT, "X-Api-Key: sk-one\r\n", plain, &p);
    assert_int_equal(p.status, 200);
    reply_done(&p);
    rig_ask(&r, "GET", "/health", "", NULL, &p);
    assert_int_equal(p.status, 200);
    reply_done(&p);
    rig_close(&r);
}

static void origins_are_allowed_by_name(void **state)
{
    struct rig r;
    struct reply p;
    struct err e;
    char text[100];
    rig_open_api(&r, 1);
    assert_int_equal(conf_set(&r.conf, "server.cors_origins", "https://a.example", &e), ERR_OK);
    rig_start(&r);
    rig_ask(&r, "OPTIONS", CHAT,
            "Origin: https://a.example\r\n"
            "Access-Control-Request-Headers: x-y\r\n",
            NULL, &p);
    assert_int_equal(p.status, 204);
    assert_string_equal(reply_header(&p, "access-control-allow-origin", text, sizeof text),
                        "https://a.example");
    assert_string_equal(reply_header(&p, "access-control-allow-headers", text, sizeof text), "x-y");
    reply_done(&p);
    rig_ask(&r, "POST", CHAT, "Origin: https://b.example\r\n", plain, &p);
    assert_int_equal(p.status, 200);
    assert_string_equal(reply_header(&p, "access-control-allow-origin", text, sizeof text), "");
    reply_done(&p);
    rig_close(&r);
}

static void bodies_that_are_too_large_get_413(void **state)
{
    struct rig r;
    struct reply p;
    rig_open_api(&r, 1);
    r.conf.server_max_body_bytes = 2000;
    rig_start(&r);
    struct buf body = {0};
    buf_puts(&body, plain);
    while (body.len < 2000)
        buf_puts(&body, " ");
    rig_ask(&r, "POST", CHAT, "", body.data, &p); /* just fits */
    assert_int_equal(p.status, 200);
    reply_done(&p);
    buf_puts(&body, " ");
    ask_error(&r, "POST", CHAT, "", body.data, 413, "too_large");
    ask_error(&r, "POST", CHAT, "Expect: 100-continue\r\n", body.data, 413, "too_large");
    /* Without a length, in chunks. */
    int fd = rig_connect(&r);
    struct buf raw = {0};
    buf_puts(&raw, "POST " CHAT " HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 3; i++)
        buf_printf(&raw, "3e8\r\n%1000s\r\n", "");
    buf_puts(&raw, "0\r\n\r\n");
    rig_send(fd, raw.data, raw.len);
    rig_receive(fd, &p);
    expect_error(&p, 413, "invalid_request_error", "too_large");
    reply_done(&p);
    close(fd);
    buf_done(&raw);
    buf_done(&body);
    rig_close(&r);
}

/* ---- clients that go away ---- */

static void leaving_cancels(const char *body, unsigned load_ms, uint32_t token_us)
{
    struct rig r;
    rig_open(&r);
    fake_engine_script(&(struct fake_script){.token_us = token_us, .load_ms = load_ms});
    int fd = rig_connect(&r);
    rig_post(fd, CHAT, "", body);
    rig_wait(fake_engine_submitted() == 1);
    rig_sleep_ms(30);
    uint64_t from = clock_ns();
    close(fd);
    rig_wait(fake_engine_cancelled() == 1);
    assert_true(clock_ns() - from < 500000000ull);
    rig_wait(engine_idle(r.server.engine));
    rig_close(&r);
}

static void leaving_cancels_a_stream(void **state)
{
    leaving_cancels(streamed, 0, 5000);
}

static void leaving_cancels_a_stream_that_is_loading(void **state)
{
    leaving_cancels(streamed, 20000, 0);
}

static void leaving_cancels_a_whole_answer(void **state)
{
    leaving_cancels(plain, 0, 5000);
}

static void leaving_cancels_a_whole_answer_that_is_loading(void **state)
{
    leaving_cancels(plain, 20000, 0);
}

static void a_reset_is_leaving_too(void **state)
{
    struct rig r;
    const struct linger now = {.l_onoff = 1, .l_linger = 0};
    rig_open(&r);
    fake_engine_script(&(struct fake_script){.token_us = 2000});
    for (int i = 0; i < 10; i++) {
        int fd = rig_connect(&r);
        rig_post(fd, CHAT, "", i % 2 ? streamed : plain);
        rig_wait(fake_engine_submitted() == (uint64_t)i + 1);
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        close(fd);
    }
    rig_wait(fake_engine_cancelled() == 10);
    rig_close(&r);
}

static void the_log_says_499_for_who_left(void **state)
{
    struct rig r;
    struct buf log = {0};
    rig_open(&r);
    fake_engine_script(&(struct fake_script){.token_us = 2000});
    int fd = rig_connect(&r);
    rig_post(fd, CHAT, "x-request-id: gone-1\r\n", plain);
    rig_wait(fake_engine_submitted() == 1);
    close(fd);
    rig_wait((rig_read_log(&r, &log), strstr(log.data, "gone-1") != NULL));
    assert_non_null(strstr(log.data, "\"status\":499"));
    assert_non_null(strstr(log.data, "\"expert\":\"alpha\""));
    assert_non_null(strstr(log.data, "\"decode_ms\":"));
    buf_done(&log);
    rig_close(&r);
}

/* ---- load ---- */

struct client {
    pthread_t thread;
    const struct rig *rig;
    unsigned rounds;
    unsigned seed;
    unsigned good;
};

static void *client_main(void *arg)
{
    struct client *c = arg;
    struct rng rng;
    rng_init(&rng, c->seed);
    for (unsigned i = 0; i < c->rounds; i++) {
        struct reply p;
        int fd = rig_connect(c->rig);
        uint64_t kind = rng_below(&rng, 4);
        rig_post(fd, CHAT, "", kind == 0 ? "{\"model\":1}" : kind == 1 ? plain : streamed);
        if (kind == 3) { /* leaves at some point */
            char piece[300];
            rig_sleep_ms((unsigned)rng_below(&rng, 4));
            recv(fd, piece, rng_below(&rng, sizeof piece), MSG_DONTWAIT);
            c->good++;
        } else {
            rig_receive(fd, &p);
            c->good += p.whole && p.status == (kind == 0 ? 400 : 200) &&
                       (kind != 2 || strstr(p.body.data, "[DONE]") != NULL);
            reply_done(&p);
        }
        close(fd);
    }
    return NULL;
}

static void many_clients_good_bad_and_leaving(void **state)
{
    struct rig r;
    struct client clients[16];
    struct err e;
    rig_open(&r);
    fake_engine_script(&(struct fake_script){.tokens = 20, .token_us = 50});
    unsigned seed = (unsigned)clock_wall_ms();
    print_message("seed %u\n", seed);
    for (unsigned i = 0; i < BASE_COUNT(clients); i++) {
        clients[i] = (struct client){.rig = &r, .rounds = 60, .seed = seed + i};
        assert_int_equal(thread_start(&clients[i].thread, "client", client_main, &clients[i], &e),
                         ERR_OK);
    }
    for (unsigned i = 0; i < BASE_COUNT(clients); i++) {
        thread_join(clients[i].thread);
        assert_int_equal(clients[i].good, clients[i].rounds);
    }
    rig_wait(engine_idle(r.server.engine));
    rig_close(&r);
}

/* ---- stopping ---- */

static void stopping_lets_running_answers_finish(void **state)
{
    struct rig r;
    struct reply p[2];
    rig_open(&r);
    fake_engine_script(&(struct fake_script){.tokens = 50, .token_us = 4000});
    int a = rig_connect(&r), b = rig_connect(&r);
    rig_post(a, CHAT, "", streamed);
    rig_post(b, CHAT, "", plain);
    rig_wait(fake_engine_submitted() == 2);
    atomic_store(&r.server.draining, true);
    http_stop(r.server.http, clock_ns() + 10000000000ull);
    rig_receive(a, &p[0]);
    rig_receive(b, &p[1]);
    assert_non_null(strstr(p[0].body.data, "[DONE]"));
    assert_int_equal(p[1].status, 200);
    reply_done(&p[0]);
    reply_done(&p[1]);
    close(a);
    close(b);
    rig_close(&r);
}

static void stopping_ends_what_does_not_finish(void **state)
{
    struct rig r;
    struct reply p[2];
    rig_open(&r);
    fake_engine_script(&(struct fake_script){.token_us = 4000});
    int a = rig_connect(&r), b = rig_connect(&r);
    rig_post(a, CHAT, "", streamed);
    rig_post(b, CHAT, "", plain);
    rig_wait(fake_engine_submitted() == 2);
    http_stop(r.server.http, clock_ns() + 50000000ull);
    rig_receive(a, &p[0]);
    rig_receive(b, &p[1]);
    assert_non_null(strstr(p[0].body.data, "shutting_down"));
    expect_error(&p[1], 503, "overloaded_error", "shutting_down");
    reply_done(&p[0]);
    reply_done(&p[1]);
    close(a);
    close(b);
    rig_close(&r);
}

static void stopping_ends_even_with_a_deaf_engine(void **state)
{
    struct rig r;
    rig_open(&r);
    fake_engine_script(&(struct fake_script){.token_us = 3000, .deaf = true});
    int a = rig_connect(&r), b = rig_connect(&r);
    rig_post(a, CHAT, "", streamed);
    rig_post(b, CHAT, "", plain);
    rig_wait(fake_engine_submitted() == 2);
    uint64_t from = clock_ns();
    http_stop(r.server.http, 0);
    assert_true(clock_ns() - from < 6000000000ull);
    close(a);
    close(b);
    rig_close(&r);
}

static void a_port_in_use_is_refused_with_the_reason(void **state)
{
    struct rig r, second;
    struct err e = {0};
    rig_open(&r);
    rig_open_api(&second, 1);
    second.conf.server_port = (uint16_t)r.port;
    assert_int_equal(http_open(&second.server, &second.server.http, &e), ERR_BUSY);
    assert_non_null(strstr(e.msg, "in use"));
    second.conf.server_port = 0;
    free(second.conf.server_host);
    second.conf.server_host = mem_strdup("0.0.0.0");
    assert_int_equal(http_open(&second.server, &second.server.http, &e), ERR_PERMISSION);
    assert_non_null(strstr(e.msg, "API key"));
    free(second.conf.server_host);
    second.conf.server_host = mem_strdup("no.such.host.invalid");
    assert_int_equal(http_open(&second.server, &second.server.http, &e), ERR_INVALID);
    rig_close(&second);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chat_is_answered_with_headers_that_say_who),
        cmocka_unit_test(one_connection_carries_many_requests),
        cmocka_unit_test(paths_and_methods_that_are_not_there),
        cmocka_unit_test(models_with_a_slash_in_their_name_are_found),
        cmocka_unit_test(health_ready_and_metrics_answer),
        cmocka_unit_test(streams_have_role_text_finish_and_done),
        cmocka_unit_test(first_bytes_do_not_wait_for_the_first_token),
        cmocka_unit_test(errors_in_mid_stream_are_an_event_and_the_end),
        cmocka_unit_test(refusals_of_the_engine_say_when_to_come_back),
        cmocka_unit_test(keys_are_asked_for_and_checked),
        cmocka_unit_test(origins_are_allowed_by_name),
        cmocka_unit_test(bodies_that_are_too_large_get_413),
        cmocka_unit_test(leaving_cancels_a_stream),
        cmocka_unit_test(leaving_cancels_a_stream_that_is_loading),
        cmocka_unit_test(leaving_cancels_a_whole_answer),
        cmocka_unit_test(leaving_cancels_a_whole_answer_that_is_loading),
        cmocka_unit_test(a_reset_is_leaving_too),
        cmocka_unit_test(the_log_says_499_for_who_left),
        cmocka_unit_test(many_clients_good_bad_and_leaving),
        cmocka_unit_test(stopping_lets_running_answers_finish),
        cmocka_unit_test(stopping_ends_what_does_not_finish),
        cmocka_unit_test(stopping_ends_even_with_a_deaf_engine),
        cmocka_unit_test(a_port_in_use_is_refused_with_the_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
