package segmenter.peers;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.nio.ByteBuffer;
import java.time.Duration;
import java.time.Instant;
import java.util.Properties;
import java.util.Set;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.CloseOptions;
import org.apache.kafka.streams.CloseOptions.GroupMembershipOperation;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.api.FixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorSupplier;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.KeyValueBytesStoreSupplier;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/**
 * A peer in the benchmark: the work of naive_agent.py as a Kafka Streams application.
 *
 * <p>Run it as {@code Lifecycle BROKER REDIS_URL GROUP STATE_FOLDER [rocksdb|memory]}; it needs no Redis. State is a
 * key-value store per partition, in RocksDB or in memory, either way with a changelog topic from which it is restored.
 *
 * <p>At least once: a crash repeats the events since the last commit, on a state that may already hold some of them, so
 * totals may count them twice. Skipped, though the segmenter does it: validation and dead letters (a record that cannot
 * be read ends the application), dedupe by event id, one atomic commit of state, changes and offsets, ids, causes and
 * order of changes, late events, other currencies, and lapses without an event. For the last, Kafka Streams offers a
 * wall-clock punctuator over the store; none of the peers does it, so neither does this one.
 *
 * <p>Settings that differ from the defaults are in {@link #settings}, each with its reason.
 */
public final class Lifecycle {
    static final int REGULAR_ORDERS = 3;
    static final Duration LAPSE_AFTER = Duration.ofDays(90);
    static final String STORE = "customers";

    private static final JsonFactory JSON = new JsonFactory();

    private Lifecycle() {}

    public static void main(String[] arguments) {
        boolean inMemory = arguments.length > 4 && arguments[4].equals("memory");
        Properties settings = settings(arguments[0], arguments[2], arguments[3]);
        KafkaStreams streams = new KafkaStreams(topology(inMemory).build(settings), settings);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        // Leaving the group spares the next start the wait until the session of this one is over.
        CloseOptions leaving = CloseOptions.groupMembershipOperation(GroupMembershipOperation.LEAVE_GROUP);
        CloseOptions atTheEnd = leaving.withTimeout(Duration.ofSeconds(30));
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(atTheEnd)));
        streams.start();
    }

    static Properties settings(String broker, String group, String stateFolder) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, broker);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, group);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, stateFolder);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.AT_LEAST_ONCE);
        settings.put(StreamsConfig.TOPOLOGY_OPTIMIZATION_CONFIG, StreamsConfig.OPTIMIZE);
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1); // there is one broker
        settings.put(StreamsConfig.NUM_STANDBY_REPLICAS_CONFIG, 0);
        // Of a customer who buys again before the next commit, only the last state goes to store and changelog.
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 64L << 20);
        // The default of 30 s would put off writing state and offsets beyond what is measured. Changes do not wait for
        // it: they are sent at once.
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1_000L);
        settings.put(StreamsConfig.ENABLE_METRICS_PUSH_CONFIG, false);

        // Much a fetch and much a poll, and room in each partition's buffer for it, so that partitions are not paused.
        settings.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 10_000);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 10_000);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG), 4 << 20);
        settings.put(StreamsConfig.RECEIVE_BUFFER_CONFIG, -1); // what the kernel thinks best
        settings.put(StreamsConfig.mainConsumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.SESSION_TIMEOUT_MS_CONFIG), 45_000);

        settings.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), 50);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 256 << 10);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BUFFER_MEMORY_CONFIG), 64L << 20);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");
        return settings;
    }

    static StreamsBuilder topology(boolean inMemory) {
        StreamsBuilder builder = new StreamsBuilder();
        builder.stream("purchases", Consumed.with(Serdes.String(), Event.SERDE))
                .processValues(new Segmenting(inMemory))
                .to("segment-changes", Produced.with(Serdes.String(), Change.SERDE));
        return builder;
    }

    /** The processor and its store. */
    record Segmenting(boolean inMemory) implements FixedKeyProcessorSupplier<String, Event, Change> {
        @Override
        public FixedKeyProcessor<String, Event, Change> get() {
            return new Segmenter();
        }

        @Override
        public Set<StoreBuilder<?>> stores() {
            KeyValueBytesStoreSupplier kind =
                    inMemory ? Stores.inMemoryKeyValueStore(STORE) : Stores.persistentKeyValueStore(STORE);
            return Set.of(Stores.keyValueStoreBuilder(kind, Serdes.String(), Customer.SERDE).withCachingEnabled());
        }
    }

    /** Folds an event into its customer's state, and forwards a change if that moves the customer. */
    static final class Segmenter implements FixedKeyProcessor<String, Event, Change> {
        private FixedKeyProcessorContext<String, Change> context;
        private KeyValueStore<String, Customer> store;

        @Override
        public void init(FixedKeyProcessorContext<String, Change> given) {
            context = given;
            store = given.getStateStore(STORE);
        }

        @Override
        public void process(FixedKeyRecord<String, Event> record) {
            Event event = record.value();
            Customer stored = store.get(record.key());
            Customer before = stored == null ? Customer.UNKNOWN : stored;
            Customer folded = before.with(event);
            Instant now = Instant.now();
            Label label = folded.labelAt(now);
            Customer after = folded.labelled(label);
            if (label != before.label) {
                context.forward(record.withValue(new Change(event, before.label, after, now)));
            }
            store.put(record.key(), after);
        }
    }

    /** The lifecycle's segments, and none. */
    enum Label {
        NONE(null),
        NEW("new"),
        REGULAR("regular"),
        LAPSED("lapsed");

        static final Label[] BY_CODE = values();
        final String text;

        Label(String text) {
            this.text = text;
        }
    }

    /** What is read of a purchase or a refund. */
    record Event(String customer, String id, boolean refund, String occurredAt, BigDecimal amount) {
        static final Serde<Event> SERDE = Serdes.serdeFrom(
                (topic, event) -> {
                    throw new UnsupportedOperationException("events are only read");
                },
                (topic, json) -> parse(json));

        static Event parse(byte[] json) {
            String customer = null, id = null, kind = null, occurredAt = null;
            BigDecimal amount = null;
            try (JsonParser parser = JSON.createParser(json)) {
                parser.nextToken();
                for (String name = parser.nextFieldName(); name != null; name = parser.nextFieldName()) {
                    JsonToken token = parser.nextToken();
                    switch (name) {
                        case "customer_id" -> customer = parser.getText();
                        case "event_id" -> id = parser.getText();
                        case "kind" -> kind = parser.getText();
                        case "occurred_at" -> occurredAt = parser.getText();
                        case "amount" -> amount = new BigDecimal(
                                parser.getTextCharacters(), parser.getTextOffset(), parser.getTextLength());
                        default -> {
                            if (token.isStructStart()) {
                                parser.skipChildren();
                            }
                        }
                    }
                }
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
            return new Event(customer, id, "refund".equals(kind), occurredAt, amount);
        }
    }

    /** The state kept for a customer. Purchases are instants in microseconds since 1970, {@code NEVER} without one. */
    record Customer(int orders, BigDecimal gross, BigDecimal refunded, long first, long last, Label label) {
        static final long NEVER = Long.MIN_VALUE;
        static final Customer UNKNOWN = new Customer(0, BigDecimal.ZERO, BigDecimal.ZERO, NEVER, NEVER, Label.NONE);
        static final Serde<Customer> SERDE =
                Serdes.serdeFrom((topic, customer) -> customer.bytes(), (topic, bytes) -> of(bytes));
        private static final int FIXED = Byte.BYTES + Integer.BYTES + 2 * Long.BYTES;

        Customer with(Event event) {
            if (event.refund) {
                return new Customer(orders, gross, refunded.add(event.amount), first, last, label);
            }
            long at = micros(Instant.parse(event.occurredAt));
            return new Customer(
                    orders + 1,
                    gross.add(event.amount),
                    refunded,
                    first == NEVER ? at : Math.min(first, at),
                    Math.max(last, at),
                    label);
        }

        Customer labelled(Label given) {
            return given == label ? this : new Customer(orders, gross, refunded, first, last, given);
        }

        Label labelAt(Instant now) {
            if (last == NEVER) {
                return Label.NONE;
            }
            if (micros(now) - last > LAPSE_AFTER.toMillis() * 1_000) {
                return Label.LAPSED;
            }
            return orders >= REGULAR_ORDERS ? Label.REGULAR : Label.NEW;
        }

        static long micros(Instant instant) {
            return instant.getEpochSecond() * 1_000_000 + instant.getNano() / 1_000;
        }

        /** Fixed fields, then both amounts, each as its scale, the length of its digits and those. */
        byte[] bytes() {
            byte[] bought = gross.unscaledValue().toByteArray();
            byte[] returned = refunded.unscaledValue().toByteArray();
            return ByteBuffer.allocate(FIXED + 4 * Byte.BYTES + bought.length + returned.length)
                    .put((byte) label.ordinal())
                    .putInt(orders)
                    .putLong(first)
                    .putLong(last)
                    .put((byte) gross.scale())
                    .put((byte) bought.length)
                    .put(bought)
                    .put((byte) refunded.scale())
                    .put((byte) returned.length)
                    .put(returned)
                    .array();
        }

        static Customer of(byte[] bytes) {
            if (bytes == null) {
                return null;
            }
            ByteBuffer buffer = ByteBuffer.wrap(bytes);
            Label label = Label.BY_CODE[buffer.get()];
            int orders = buffer.getInt();
            long first = buffer.getLong();
            long last = buffer.getLong();
            return new Customer(orders, amount(buffer), amount(buffer), first, last, label);
        }

        private static BigDecimal amount(ByteBuffer buffer) {
            int scale = buffer.get();
            byte[] digits = new byte[buffer.get()];
            buffer.get(digits);
            return new BigDecimal(new BigInteger(digits), scale);
        }
    }

    /** What is published when an event moves its customer. */
    record Change(Event event, Label from, Customer customer, Instant decidedAt) {
        static final Serde<Change> SERDE = Serdes.serdeFrom((topic, change) -> change.json(), (topic, json) -> {
            throw new UnsupportedOperationException("changes are only written");
        });

        byte[] json() {
            ByteArrayOutputStream bytes = new ByteArrayOutputStream(320);
            try (JsonGenerator json = JSON.createGenerator(bytes)) {
                json.writeStartObject();
                json.writeStringField("customer_id", event.customer);
                json.writeStringField("dimension", "lifecycle");
                json.writeStringField("from", from.text);
                json.writeStringField("to", customer.label.text);
                json.writeStringField("event_id", event.id);
                json.writeStringField("effective_at", event.occurredAt);
                json.writeStringField("decided_at", decidedAt.toString());
                json.writeObjectFieldStart("rfm");
                long since = Customer.micros(decidedAt) - customer.last;
                json.writeNumberField("recency_days", Math.floorDiv(since, Duration.ofDays(1).toMillis() * 1_000));
                json.writeNumberField("frequency", customer.orders);
                json.writeStringField("monetary", customer.gross.subtract(customer.refunded).toPlainString());
                json.writeEndObject();
                json.writeEndObject();
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
            return bytes.toByteArray();
        }
    }
}
