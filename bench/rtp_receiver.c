/* Receives RTP streams and measures their loss and jitter, for bench/streams.py.
 *
 * usage: rtp_receiver SOCKETS [THREADS]
 *
 * Binds SOCKETS ports of 127.0.0.1 and prints them in one line. For each line on stdin it prints
 * figures about the time since the previous one; it exits at the end of stdin:
 *
 *   streams packets missing late_or_double overflowed cpu_seconds p99 p999 worst highest_p99
 *
 * Streams are identified by SSRC. `missing` counts gaps in their sequence numbers; `overflowed` of
 * these were dropped because this program was too slow. The rest is the deviation of packet spacing
 * from 20 ms, in ms, by the kernel's timestamps: of all streams together, and the highest p99 of a
 * stream.
 *
 * Each thread reads some of the sockets, on its own core if there are enough, so that it does not
 * disturb senders on changing cores.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    AT_ONCE = 1024,     /* packets of one system call */
    HEAD = 12,          /* bytes of a packet that are looked at */
    TABLE = 1 << 16,    /* places for streams */
    BINS = 200,         /* of 0.25 ms; the last takes all beyond */
    PER_MS = 4,
    PAUSE_US = 2000,    /* between two looks at the sockets */
    ROOM = 32 << 20,    /* bytes of a receive buffer */
};

struct stream {
    uint32_t ssrc;
    uint16_t next;
    uint8_t used, heard;
    int64_t at;
    uint16_t bins[BINS];
};

struct ear {
    pthread_mutex_t heard; /* held while reading and while reporting */
    pthread_t thread;
    int *descriptors, count, core;
    struct stream *table;
    uint64_t packets, missing, strays, all[BINS];
    double worst;
    struct mmsghdr messages[AT_ONCE];
    struct iovec parts[AT_ONCE];
    uint8_t heads[AT_ONCE][HEAD];
    char control[AT_ONCE][CMSG_SPACE(sizeof(struct timespec))];
};

static void *zeroed(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (!memory) {
        perror("calloc");
        exit(1);
    }
    return memory;
}

static struct stream *find(struct stream *table, uint32_t ssrc) {
    uint32_t place = ssrc * 2654435761u >> 16;
    while (table[place].used && table[place].ssrc != ssrc)
        place = (place + 1) % TABLE;
    return &table[place];
}

static void take(struct ear *ear, const uint8_t *head, int64_t at) {
    uint16_t sequence = head[2] << 8 | head[3];
    uint32_t ssrc;
    memcpy(&ssrc, head + 8, sizeof ssrc);
    struct stream *s = find(ear->table, ssrc);
    ear->packets++;
    if (!s->used) {
        *s = (struct stream){.ssrc = ssrc, .used = 1, .next = sequence};
    } else {
        int16_t ahead = sequence - s->next;
        if (ahead < 0) {
            ear->strays++;
            return;
        }
        ear->missing += ahead;
        if (s->heard && !ahead) {
            double off = fabs((at - s->at) / 1e6 - 20.0);
            int bin = off * PER_MS < BINS - 1 ? (int)(off * PER_MS) : BINS - 1;
            ear->all[bin]++;
            s->bins[bin] += s->bins[bin] < UINT16_MAX;
            if (off > ear->worst)
                ear->worst = off;
        }
    }
    s->next = sequence + 1;
    s->heard = 1;
    s->at = at;
}

static void prepare(struct ear *ear) {
    for (int i = 0; i < AT_ONCE; i++) {
        ear->parts[i] = (struct iovec){ear->heads[i], HEAD};
        ear->messages[i].msg_hdr = (struct msghdr){.msg_iov = &ear->parts[i],
                                                   .msg_iovlen = 1,
                                                   .msg_control = ear->control[i],
                                                   .msg_controllen = sizeof ear->control[i]};
    }
}

static void drain(struct ear *ear, int descriptor) {
    for (;;) {
        int got = recvmmsg(descriptor, ear->messages, AT_ONCE, MSG_DONTWAIT, NULL);
        for (int i = 0; i < got; i++) {
            struct msghdr *header = &ear->messages[i].msg_hdr;
            int64_t at = 0;
            for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
                if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_TIMESTAMPNS)
                    continue;
                struct timespec t;
                memcpy(&t, CMSG_DATA(c), sizeof t);
                at = t.tv_sec * 1000000000LL + t.tv_nsec;
            }
            if (ear->messages[i].msg_len == HEAD)
                take(ear, ear->heads[i], at);
            header->msg_controllen = sizeof ear->control[i]; /* the kernel has overwritten it */
        }
        if (got < AT_ONCE)
            return;
    }
}

static void *hear(void *given) {
    struct ear *ear = given;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(ear->core, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set); /* where it may not: as it comes */
    for (;;) {
        pthread_mutex_lock(&ear->heard);
        for (int i = 0; i < ear->count; i++)
            drain(ear, ear->descriptors[i]);
        pthread_mutex_unlock(&ear->heard);
        usleep(PAUSE_US);
    }
    return NULL;
}

static double quantile(const uint64_t *bins, double part) {
    uint64_t count = 0, up_to = 0;
    for (int i = 0; i < BINS; i++)
        count += bins[i];
    for (int i = 0; i < BINS; i++)
        if ((up_to += bins[i]) >= part * count && count)
            return (i + 1.0) / PER_MS;
    return 0;
}

static double cpu(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec +
           (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* Packets that the kernel dropped, of all our sockets, as /proc/net/udp counts them. */
static uint64_t dropped(const uint16_t *ports, int count) {
    FILE *file = fopen("/proc/net/udp", "r");
    char line[512];
    uint64_t total = 0;
    while (file && fgets(line, sizeof line, file)) {
        unsigned port;
        unsigned long long drops;
        if (sscanf(line, " %*d: %*x:%x %*x:%*x %*x %*x:%*x %*x:%*x %*x %*d %*d %*d %*d %*s %llu",
                   &port, &drops) != 2)
            continue;
        for (int i = 0; i < count; i++)
            if (ports[i] == port)
                total += drops;
    }
    if (file)
        fclose(file);
    return total;
}

static void report(struct ear *ears, int threads, const uint16_t *ports, int count) {
    static double cpu_before;
    static uint64_t dropped_before;
    uint64_t packets = 0, missing = 0, strays = 0, all[BINS] = {0};
    uint64_t dropped_now = dropped(ports, count);
    int heard = 0;
    double worst = 0, highest = 0;
    for (int e = 0; e < threads; e++) {
        struct ear *ear = &ears[e];
        pthread_mutex_lock(&ear->heard);
        for (int i = 0; i < TABLE; i++) {
            struct stream *s = &ear->table[i];
            if (!s->heard)
                continue;
            uint64_t bins[BINS];
            for (int b = 0; b < BINS; b++)
                bins[b] = s->bins[b];
            double p99 = quantile(bins, 0.99);
            if (p99 > highest)
                highest = p99;
            memset(s->bins, 0, sizeof s->bins);
            s->heard = 0;
            heard++;
        }
        packets += ear->packets;
        missing += ear->missing;
        strays += ear->strays;
        for (int b = 0; b < BINS; b++)
            all[b] += ear->all[b];
        if (ear->worst > worst)
            worst = ear->worst;
        ear->packets = ear->missing = ear->strays = 0;
        ear->worst = 0;
        memset(ear->all, 0, sizeof ear->all);
        pthread_mutex_unlock(&ear->heard);
    }
    printf("%d %llu %llu %llu %llu %.6f %.2f %.2f %.2f %.2f\n", heard, (unsigned long long)packets,
           (unsigned long long)missing, (unsigned long long)strays,
           (unsigned long long)(dropped_now - dropped_before), cpu() - cpu_before,
           quantile(all, 0.99), quantile(all, 0.999), worst, highest);
    fflush(stdout);
    dropped_before = dropped_now;
    cpu_before = cpu();
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 0;
    int threads = argc > 2 ? atoi(argv[2]) : 1;
    if (count < 1 || threads < 1 || argc > 3) {
        fprintf(stderr, "usage: %s SOCKETS [THREADS]\n", argv[0]);
        return 2;
    }
    if (threads > count)
        threads = count;
    int *descriptors = zeroed(count, sizeof *descriptors);
    uint16_t *ports = zeroed(count, sizeof *ports);
    struct ear *ears = zeroed(threads, sizeof *ears);
    for (int i = 0; i < count; i++) {
        struct sockaddr_in local = {.sin_family = AF_INET};
        socklen_t size = sizeof local;
        int room = ROOM, on = 1;
        local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        descriptors[i] = socket(AF_INET, SOCK_DGRAM, 0);
        if (descriptors[i] < 0 || bind(descriptors[i], (void *)&local, size) ||
            getsockname(descriptors[i], (void *)&local, &size) ||
            setsockopt(descriptors[i], SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on)) {
            perror("socket");
            return 1;
        }
        /* Past net.core.rmem_max where we may, else up to it. */
        if (setsockopt(descriptors[i], SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room))
            setsockopt(descriptors[i], SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
        ports[i] = ntohs(local.sin_port);
        printf("%d%c", ports[i], i + 1 < count ? ' ' : '\n');
    }
    for (int e = 0, first = 0; e < threads; e++) {
        struct ear *ear = &ears[e];
        ear->descriptors = descriptors + first;
        ear->count = count / threads + (e < count % threads);
        ear->core = e;
        first += ear->count;
        ear->table = zeroed(TABLE, sizeof *ear->table);
        prepare(ear);
        pthread_mutex_init(&ear->heard, NULL);
        if (pthread_create(&ear->thread, NULL, hear, ear)) {
            fprintf(stderr, "a thread can't be started\n");
            return 1;
        }
    }
    fflush(stdout);
    char line[64];
    while (read(0, line, sizeof line) > 0)
        report(ears, threads, ports, count);
    return 0;
}
