// Roles for MongoDB. Run it with mongosh as an administrator, against the database of the trail; it may be run again:
//
//   mongosh "mongodb://admin@host/taskflow?authSource=admin" ops/roles/mongodb.js
//
// Then give the roles to users of your own (db.createUser({ user, pwd, roles: ["taskflow_app"] })):
//   taskflow_app        API and workers: add events and read them; can neither change nor remove one
//   taskflow_scheduler  stamps events (expiresAt), adds copies of the seals, reads all for backups; can't remove one
//   taskflow_retention  the scheduler where it removes events, and `taskflow audit erase`: the only one that removes
//                       (`taskflow restore --agree` takes these three together)
//   taskflow_reader     `taskflow audit verify`, `taskflow audit prove`
// A user of the scheduler needs the role clusterMonitor of the database admin beside these, if upkeep is to see the
// server's load and its replica set; without it the runs say what they could not see.
//
// MongoDB's own reaper removes by the index on expiresAt. Whoever may stamp an event can thereby have it removed: the
// seals show it, since it is gone before its time.

// What each role may do, by collection; "" is the database. A test reads these lines as JSON and tries them.
const roles = {
  "taskflow_app": {
    "event_logs": ["find", "listIndexes", "collStats", "insert"],
    "audit_leaves": ["find", "insert"],
    "audit_seals": ["find"],
    "schema_versions": ["find"],
    "": ["listCollections", "dbStats"]
  },
  "taskflow_scheduler": {
    "event_logs": ["find", "listIndexes", "collStats", "update", "validate", "compact", "createIndex"],
    "audit_leaves": ["find", "listIndexes"],
    "audit_seals": ["find", "listIndexes", "insert"],
    "schema_versions": ["find", "listIndexes"],
    "taskflow_restore": ["find"],
    "": ["listCollections", "dbStats"]
  },
  "taskflow_retention": {
    "event_logs": ["find", "update", "remove"],
    "audit_leaves": ["find", "update", "remove"],
    "taskflow_restore": ["find", "remove"]
  },
  "taskflow_reader": {
    "event_logs": ["find"],
    "audit_leaves": ["find"],
    "audit_seals": ["find"]
  }
};

for (const [role, collections] of Object.entries(roles)) {
  const privileges = Object.entries(collections).map(([collection, actions]) => ({
    resource: { db: db.getName(), collection },
    actions,
  }));
  if (db.getRole(role) === null) {
    db.createRole({ role, privileges, roles: [] });
  } else {
    db.updateRole(role, { privileges, roles: [] });
  }
  print(`${role} on ${db.getName()}: ${Object.keys(collections).filter((name) => name).join(", ")}`);
}
